"""All learners on the same data, each trained for the same time, one after the other, and tested on the same episodes.

    python -m benchmarks.learners images_background -o results [--seconds 60]
    python -m benchmarks.learners images_background -o results --learners protonet,maml,transfer --seconds 1800 \
        --seeds 0,1,2 --shapes 5x1,5x5,20x1,20x5
    python -m benchmarks.learners images_background -o results --seconds 180 --seeds 1,2 --as-seed 0
    python -m benchmarks.learners images_background -o results --learners maml,reptile --batch-norm transductive
    python -m benchmarks.learners images_background -o results/ablations --learners protonet --train-way 5 \
        --set protonet.backbone.pooling=stride
    python -m benchmarks.learners -o results              the tables alone, of what is there

Each cell (learner, shape, seed, seconds) is a file in the output folder, written when it is finished; started again,
the benchmark goes on, also within a training. A machine is not as fast every day: with `--as-seed`, further seeds are
trained for as many episodes as that seed's model made in its seconds. Prints the tables of docs/benchmarks.md: one for
each shape, budget and batch-norm mode.
"""

import argparse
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import Field

from benchmarks.omniglot import split_by_alphabet
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, Record
from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.evaluation.evaluate import Protocol, evaluate_bundle
from metalearn_core.evaluation.ranking import Difference, against, over_seeds
from metalearn_core.learners import LEARNERS, parse_spec
from metalearn_core.resources import available_cores
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.requests import TrainingRequest
from metalearn_core.steps.training import train_bundle
from metalearn_core.storage import read_json, text_digest, write_json
from metalearn_core.training.loop import TrainingStoppedError
from metalearn_core.version import git_commit, library_versions

BASELINE = "transfer"
QUERY = 15
TEST_SEED = 20
MARK = "▼"
_DIFFERENCE = f"difference from {BASELINE}, points"


class Cell(Record):
    """One model, and what it reached.

    Attributes:
        key: all that decides it: learner, training request, dataset, protocol.
        name: of the learner, with the options that were set.
        failure: why there are no figures; None: there are.
        machine, commit: where and with which code.
        ended: how its training ended: the record of `train_bundle`, without its history.
        accuracies: of each test episode.
        ci95_classes, ece, adaptation_ms: of the evaluation.
        batch_norm: that it was trained and tested in.
    """

    key: dict[str, Any]
    name: str
    failure: str | None = None
    machine: str
    commit: str
    ended: dict[str, Any] = Field(default_factory=dict)
    accuracies: tuple[float, ...] = ()
    ci95_classes: float = 0.0
    ece: float = 0.0
    adaptation_ms: float = 0.0
    batch_norm: str

    @property
    def table(self) -> tuple[int, int, float, str]:
        """Way, shot, seconds and batch-norm mode: cells of one table have them in common."""
        request = self.key["request"]
        return request["way"], request["shot"], request["seconds"] or self.key["seconds"], self.batch_norm


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the cells that are asked for and missing, and print the tables; return 1 where a cell failed."""
    asked = _parser().parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.images:
        with FileLock(asked.output / ".lock", timeout=0):  # side by side they would take each other's time
            make_cells(asked)
    cells = read_cells(asked.output)
    print(tables(cells))
    return 1 if any(cell.failure for cell in cells) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?", help="a folder of images: Omniglot's images_background")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the cells")
    parser.add_argument("--seconds", type=float, default=60, help="of each training")
    parser.add_argument("--learners", help="separated by commas; by default all that have the batch-norm mode")
    parser.add_argument("--seeds", default="0", help="of training, as 0,1,2")
    parser.add_argument(
        "--as-seed", type=int, help="train for as many episodes as this seed's model, whatever the time"
    )
    parser.add_argument("--shapes", default="5x1", help="way x shot, as 5x1,20x5")
    parser.add_argument("--train-way", type=int, default=0, help="classes of a training episode; 0: the learner's own")
    parser.add_argument("--episodes", type=int, default=1000, help="test episodes")
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--batch-norm", choices=("inductive", "transductive"), default="inductive")
    parser.add_argument("--set", action="append", default=[], help="LEARNER.OPTION=VALUE; repeatable")
    parser.add_argument("--retry", action="store_true", help="cells that failed too")
    return parser


def make_cells(asked: argparse.Namespace) -> None:
    """Make what is missing, shape by shape, seed by seed, so that an early end leaves whole tables."""
    place = built(asked.images, asked.output, asked.image_size)
    dataset = EpisodeDataset.open(place)
    shapes = [tuple(int(number) for number in text.split("x")) for text in asked.shapes.split(",")]
    seeds = [int(text) for text in asked.seeds.split(",")]
    todo = list(product(shapes, seeds, asked.learners.split(",") if asked.learners else able(asked.batch_norm)))
    for number, ((way, shot), seed, name) in enumerate(todo, start=1):
        own = [text.removeprefix(f"{name}.").split("=", 1) for text in asked.set if text.startswith(f"{name}.")]
        options = dict(own) if asked.batch_norm == "inductive" else {**dict(own), "batch_norm": asked.batch_norm}
        item = parse_spec(name, options).model_dump(mode="json")
        request = TrainingRequest(
            way=way, shot=shot, query=QUERY, train_way=asked.train_way, seconds=asked.seconds, seed=seed
        )
        if asked.as_seed is not None:
            there = [cell for cell in read_cells(asked.output) if cell.key["dataset"] == dataset.digest]
            known = _episodes(there, item, request.model_copy(update={"seed": asked.as_seed}))
            request = request.model_copy(update={"seconds": 0.0, "episodes": known})
        protocol = Protocol(
            way=way,
            shot=shot,
            query=QUERY,
            episodes=asked.episodes,
            seed=TEST_SEED,
            batch_norm=asked.batch_norm,
            domain_episodes=0,
        )
        key = {
            "item": item,
            "request": request.model_dump(),
            "dataset": dataset.digest,
            "protocol": protocol.model_dump(),
        }
        if asked.as_seed is not None:
            key["seconds"] = asked.seconds
        file = asked.output / f"{name}-{way}x{shot}-{asked.seconds:g}s-seed{seed}-{text_digest(key)[:8]}.json"
        if file.exists() and not (asked.retry and Cell.model_validate(read_json(file, "cell")).failure):
            continue
        print(f"{number} of {len(todo)}: {file.stem}", file=sys.stderr, flush=True)
        write_json(file, _made(key, item, request, protocol, place, dataset).model_dump(mode="json"))


def able(batch_norm: str) -> list[str]:
    """Return the learners that have a batch-norm mode."""
    return sorted(name for name, kind in LEARNERS.items() if batch_norm == "inductive" or kind.info.transductive)


def _episodes(cells: Iterable[Cell], item: dict[str, Any], request: TrainingRequest) -> int:
    """Return how many training episodes the model made that was trained so."""
    for cell in cells:
        if cell.key["item"] == item and cell.key["request"] == request.model_dump() and cell.failure is None:
            return int(cell.ended["train_episodes"])
    raise SystemExit(
        f"--as-seed {request.seed}: there is no cell of {item['learner']} with that seed and these seconds"
    )


def built(images: Path, output: Path, image_size: int) -> Path:
    """Return the episode dataset of a folder of images: Omniglot's is split by alphabet, any other by its domains."""
    place = output / f"episodes-{image_size}"
    if not place.exists():
        split = split_by_alphabet(images)
        known = {part for _, part in split} == {"train", "validation", "test"}
        options = BuildOptions(image_size=image_size, split_file=split if known else None)
        build_dataset(str(images), place, options)
    return place


def _made(
    key: dict[str, Any],
    item: dict[str, Any],
    request: TrainingRequest,
    protocol: Protocol,
    place: Path,
    dataset: EpisodeDataset,
) -> Cell:
    """Train and test one model, or say why that could not be."""
    where = {"machine": f"{available_cores()} cores, {platform.machine()}", "commit": git_commit()}
    scratch = place.parent / "training" / text_digest(key)[:16]
    name = f"{learner_name(item)} train_way={request.train_way}" if request.train_way else learner_name(item)
    cell = Cell(key=key, name=name, batch_norm=protocol.batch_norm, **where)
    try:
        ended = train_bundle(str(place), item, request, str(scratch / "bundle"), checkpoints=str(scratch / "kept"))
        evaluation, scores = evaluate_bundle(scratch / "bundle", dataset, protocol)
    except TrainingStoppedError as stopped:  # nothing is wrong with the learner: its training goes on next time
        raise SystemExit(one_line(stopped)) from None
    except MetalearnError as error:
        return cell.model_copy(update={"failure": one_line(error)})
    shutil.rmtree(scratch)
    ended = {name: value for name, value in ended.items() if name != "history"}
    return cell.model_copy(
        update={
            "ended": {**ended, "torch": library_versions()["torch"]},
            "accuracies": tuple(scores.accuracy.tolist()),
            "ci95_classes": evaluation.ci95_classes,
            "ece": evaluation.ece,
            "adaptation_ms": evaluation.adaptation_ms,
        }
    )


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells that a folder holds."""
    return [Cell.model_validate(read_json(path, "cell")) for path in sorted(folder.glob("*.json"))]


def tables(cells: Sequence[Cell]) -> str:
    """Return the tables in Markdown: one for each way, shot and budget; what failed stands below."""
    parts = []
    for way, shot, seconds, batch_norm in sorted({cell.table for cell in cells}):
        inside = [cell for cell in cells if cell.table == (way, shot, seconds, batch_norm)]
        mode = "" if batch_norm == "inductive" else f", {batch_norm}"
        parts.append(_table(f"{way}-way {shot}-shot, {seconds:g} s of training each{mode}", inside))
    commits = sorted({cell.commit for cell in cells})
    return "\n\n".join([*parts, f"Code: {', '.join(commits)}." if commits else "There are no cells yet."])


def _table(title: str, cells: Sequence[Cell]) -> str:
    models: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.failure is None:
            models.setdefault(cell.name, []).append(cell)
    differences, method = _against_baseline(models)
    rows = [
        _row(name, models[name], differences.get(name))
        for name in sorted(models, key=lambda name: -_mean_accuracy(models[name]))
    ]
    columns = [column for column in (rows[0] if rows else ()) if BASELINE in models or column != _DIFFERENCE]
    lines = [f"**{title}**", "", *(_line(cells) for cells in (columns, ["---"] * len(columns)) if columns)]
    lines += [_line([row[column] for column in columns]) for row in rows]
    if method:
        lines += ["", f"{MARK}: below {BASELINE}. {method}"]
    lines += [f"{cell.name}, seed {cell.key['request']['seed']}: {cell.failure}." for cell in cells if cell.failure]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(name: str, models: Sequence[Cell], difference: Difference | None) -> dict[str, str]:
    """Return a learner's cells by their columns."""
    accuracy, half_width = over_seeds([cell.accuracies for cell in models])
    batches = models[0].ended["train_shape"] == "plain examples"
    timed = [cell for cell in models if cell.key["request"]["seconds"]] or models  # others were made on slower days
    rate = mean(cell.ended["train_episodes"] / cell.ended["train_seconds"] for cell in timed)
    from_baseline = ""
    if difference is not None:
        middle, low, high = (100 * value for value in (difference.difference, difference.low, difference.high))
        from_baseline = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")
    memory = max(cell.ended["peak_gpu_memory_bytes"] or cell.ended["peak_memory_bytes"] for cell in models)
    return {
        "learner": f"{name} {MARK}" if difference is not None and difference.difference < 0 else name,
        "seeds": str(len(models)),
        "accuracy, %": f"{100 * accuracy:.2f}" + (f" ± {100 * half_width:.2f}" if half_width is not None else ""),
        "± for new classes": f"{100 * mean(cell.ci95_classes for cell in models):.2f}",
        _DIFFERENCE: from_baseline,
        "ECE": f"{mean(cell.ece for cell in models):.3f}",
        "batch norm": models[0].batch_norm,
        "training episodes/s": f"{rate:,.1f}{' batches' if batches else ''}",
        "adapts in": f"{mean(cell.adaptation_ms for cell in timed):.1f} ms",
        "parameters": f"{models[0].ended['parameters']:,}",
        "memory": f"{memory / 1e6:,.0f} MB",
    }


def _against_baseline(models: dict[str, list[Cell]]) -> tuple[dict[str, Difference | None], str]:
    """Return the differences to the baseline's models of the same seeds, and how they were made.

    Learners of which there are the same seeds are compared by the same test, most seeds first. All intervals of a
    table hold together: learners that are given further seeds because they did well are not judged more leniently.
    """
    baseline = {_seed(cell): cell.accuracies for cell in models.get(BASELINE, ())}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, own in models.items():
        seeds = tuple(sorted(_seed(cell) for cell in own))
        if name != BASELINE and baseline.keys() >= set(seeds):
            groups.setdefault(seeds, []).append(name)
    differences: dict[str, Difference | None] = {}
    methods, comparisons = [], sum(len(names) for names in groups.values())
    for seeds, names in sorted(groups.items(), key=lambda group: -len(group[0])):
        alike = {name: [cell.accuracies for cell in sorted(models[name], key=_seed)] for name in names}
        of_baseline = [baseline[seed] for seed in seeds]
        found, method = against(BASELINE, {BASELINE: of_baseline, **alike}, comparisons=comparisons)
        differences |= found
        methods.append(method)
    return differences, f"Differences: {'; the others: '.join(methods)}." if methods else ""


def _seed(cell: Cell) -> int:
    return int(cell.key["request"]["seed"])


def _mean_accuracy(models: Sequence[Cell]) -> float:
    return float(np.mean([cell.accuracies for cell in models]))


def mean(values: Iterable[float]) -> float:
    """Return the mean of some values."""
    return float(np.mean(list(values)))


if __name__ == "__main__":
    sys.exit(main())
