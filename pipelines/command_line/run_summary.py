"""What `metalearn run` prints at its end: the learners side by side, and what became of the selected one."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.command_line.options import DEFAULT_WORKDIR, answers, percent, print_reasons, print_table, workdir_at

_WIDTH = 80


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the summary of a run, as its last step wrote it, in at most 80 columns where names are short."""
    from metalearn_core.data.manifest import SPLITS

    dataset, results = summary["dataset"], summary["results"]
    splits = ", ".join(f"{dataset['splits'][split]} {split}" for split in SPLITS)
    first = results[0]
    answers.print(f"\ndataset {dataset['digest']}")
    answers.print(f"{dataset['examples']:,} examples; classes: {splits}")
    answers.print(
        f"{first['way']}-way {first['shot']}-shot, {first['query']} queries per class, "
        f"{first['episodes']:,} {first['split']} episodes, {first['batch_norm']}"
    )
    comparison = summary["comparison"]
    shared = _shared_options([line["name"] for line in comparison["learners"]])
    if shared:
        answers.print(f"all learners: {' '.join(shared)}", markup=False, soft_wrap=True)
    answers.print()
    _print_comparison(comparison, shared)
    if first["leakage"]:
        from metalearn_core.data.leakage import Leakage

        _say(Leakage(**first["leakage"], class_digests=()).finding)
    promotion, selected = summary["promotion"], summary["selected"]
    stays = promotion["champion_before"] == selected["version"]
    verdict = "stays the champion" if stays else "is promoted" if promotion["promoted"] else "is not promoted"
    answers.print(f"\n{selected['name']}: {selected['model']} {verdict}:", markup=False, soft_wrap=True)
    print_reasons(promotion["reasons"])
    answers.print(f"\nlook at it:  {_look(summary)}", markup=False, soft_wrap=True)


def _shared_options(names: Sequence[str]) -> list[str]:
    """Return the options that every one of several learners has, which need not stand in each line."""
    first, *others = (name.split()[1:] for name in names)
    return [option for option in first if all(option in other for other in others)] if others else []


def _print_comparison(comparison: Mapping[str, Any], shared: Sequence[str]) -> None:
    lines, selected = comparison["learners"], comparison["selected"]
    seeds = len(lines[0]["seeds"])

    def named(line: Mapping[str, Any]) -> str:
        name = " ".join(word for word in line["name"].split() if word not in shared)
        return f"{'* ' if line['name'] == selected else '  '}{name}"

    several = len(lines) > 1
    columns = ["  learner ", "test, %", *(["diff. from *, points", "p"] if several else []), "ECE", "valid., %"]
    rows = [
        [
            named(line),
            percent(line["accuracy"], line["ci95"]),
            *(_difference(line["against_selected"]) if several else []),
            f"{line['ece']:.3f}",
            percent(line["validation_accuracy"]),
        ]
        for line in lines
    ]
    print_table(columns, rows)
    answers.print()
    costs = [
        [
            named(line),
            f"{line['train_seconds']:.0f} s",
            f"{line['train_episodes']:,.0f}",
            _megabytes(line),
            f"{line['parameters']:,}",
            f"{line['adaptation_ms']:.1f} ms",
        ]
        for line in lines
    ]
    print_table(["  learner ", "training", "episodes", "memory", "parameters", "adapts in"], costs)
    if seeds > 1:
        answers.print()
        each = [
            [named(line), str(one["seed"]), percent(one["accuracy"], one["ci95"]), percent(one["validation_accuracy"])]
            for line in lines
            for one in line["seeds"]
        ]
        print_table(["  learner ", "seed", "test, %", "valid., %"], each)
    answers.print()
    _say("* selected on validation episodes; test episodes only report")
    what = "test episodes" if seeds == 1 else f"{seeds} training seeds"
    _say(f"±: 95 % interval over {what}; ECE: expected calibration error")
    if several:
        _say(f"difference from *: {comparison['method']}")
    _say(f"this applies to {comparison['speaks_of']}")


def _difference(against: Mapping[str, float] | None) -> list[str]:
    if against is None:
        return ["–", "–"]
    low, high, middle = (f"{100 * against[name]:+.2f}".replace("-", "−") for name in ("low", "high", "difference"))
    p = against["p_holm"]
    return [f"{middle} ({low} to {high})", "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")]


def _megabytes(line: Mapping[str, Any]) -> str:
    """Return the memory of a training: of the GPU where there was one."""
    return f"{(line['peak_gpu_memory_bytes'] or line['peak_memory_bytes']) / 1e6:,.0f} MB"


def _say(text: str) -> None:
    """Print a note below a table, wrapped with an indent."""
    import textwrap

    answers.print("\n".join(textwrap.wrap(text, _WIDTH - 2, subsequent_indent="  ")), style="dim", markup=False)


def _look(summary: Mapping[str, Any]) -> str:
    """Return the tracking server's page, or the command that opens one on this work directory, as this was called."""
    import shlex
    import shutil

    workdir, uri = summary["workdir"], str(summary["tracking_uri"])
    if uri.startswith(("http://", "https://")):
        return uri
    program = sys.argv[0] if shutil.which("metalearn") is None else "metalearn"
    default = workdir_at(DEFAULT_WORKDIR).path
    return shlex.join([program, "ui", *([] if Path(workdir) == default else ["--workdir", workdir])])
