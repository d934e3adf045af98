"""Options that several verbs share, and where a verb's answer goes: tables or one JSON object on standard output."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.workdir import DEFAULT, Workdir

WorkdirOption = Annotated[
    Path,
    typer.Option(
        "--workdir",
        envvar="METALEARN_HOME",
        help="Where the tracking database, datasets, results and logs are kept.",
        file_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")]
WayOption = Annotated[
    str | None, typer.Option("--way", help="Classes an episode, or a range, as 5-20.", show_default="5")
]
ShotOption = Annotated[
    str | None,
    typer.Option(
        "--shot", help="Support examples a class, or a range, as 1-10: classes then differ.", show_default="1"
    ),
]
QueryOption = Annotated[
    int | None,
    typer.Option("--query", help="Query examples a class; for a range of shots, at most.", show_default="15"),
]
OwnWayOption = Annotated[
    str | None, typer.Option("--way", help="Classes an episode, or a range, as 5-20.", show_default="the model's")
]
OwnShotOption = Annotated[
    str | None, typer.Option("--shot", help="Support examples a class, or a range.", show_default="the model's")
]
OwnQueryOption = Annotated[
    int | None, typer.Option("--query", help="Query examples a class.", show_default="the model's")
]
TrainWayOption = Annotated[
    str | None,
    typer.Option("--train-way", help="Classes a training episode, or a range.", show_default="the recipe's"),
]
TrainShotOption = Annotated[
    str | None,
    typer.Option(
        "--train-shot", help="Support examples a class of a training episode, or a range.", show_default="the recipe's"
    ),
]
TrainQueryOption = Annotated[
    int | None,
    typer.Option("--train-query", help="Query examples a class of a training episode.", show_default="the recipe's"),
]
TrainWithinDomainOption = Annotated[
    bool | None,
    typer.Option(
        "--train-within-domain",
        help="The classes of a training episode come from one domain.",
        show_default="from any",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An option of a learner, of its backbone or of the gate, as maml.inner_steps=5, backbone.width=32 or "
        "gate.min_accuracy=0.9 (`metalearn learners` lists all); repeatable.",
    ),
]
LearnerSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An option of the learner or of its backbone, as maml.inner_steps=5 or backbone.width=32 "
        "(`metalearn learners` lists all); repeatable.",
    ),
]
GateSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A rule of the gate, as gate.min_accuracy=0.9 (docs/concepts.md); repeatable."),
]
PatienceOption = Annotated[
    int | None,
    typer.Option("--patience", help="Stop after so many validations without a better one.", show_default="never"),
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="Of training: fp32, bf16 or auto.", show_default="auto")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Of training: cpu, cuda or auto.", show_default="auto")
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", help="That share a training step's episodes; the same model.", show_default="1"),
]
CheckpointSecondsOption = Annotated[
    float | None,
    typer.Option("--checkpoint-seconds", help="At most so long between checkpoints.", show_default="60"),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Network that embeds examples.", show_default="conv4")
]
ImageSizeOption = Annotated[
    int | None, typer.Option("--image-size", help="Height and width of stored images, pixels.", show_default="28")
]
ColorOption = Annotated[str | None, typer.Option("--color", help="auto, grey or rgb.", show_default="auto")]
SplitByOption = Annotated[
    str | None, typer.Option("--split-by", help="What goes whole to a split: class or domain.", show_default="auto")
]
SplitFileOption = Annotated[
    str | None, typer.Option("--split-file", help="CSV with the columns class and split.", show_default=False)
]
RatiosOption = Annotated[
    str | None,
    typer.Option("--ratios", help="Shares of train, validation, test.", show_default="0.7,0.15,0.15"),
]
SplitSeedOption = Annotated[int | None, typer.Option("--split-seed", help="Which classes go where.", show_default="0")]
RotationsOption = Annotated[
    str | None,
    typer.Option("--rotations", help="Splits whose quarter turns are classes: train, all, none.", show_default="train"),
]
SplitFromOption = Annotated[
    str | None,
    typer.Option("--split-from", help="Earlier dataset whose classes keep their splits.", show_default=False),
]
MinExamplesOption = Annotated[
    int | None, typer.Option("--min-examples", help="Leave out classes with fewer examples.", show_default="1")
]
MaxUnreadableOption = Annotated[
    float | None,
    typer.Option("--max-unreadable", help="Largest share of unreadable files put up with.", show_default="0.05"),
]
BuildShardsOption = Annotated[
    int | None, typer.Option("--build-shards", help="Steps that share the source's decoding.", show_default="1")
]

EngineOption = Annotated[
    Literal["local", "container"],
    typer.Option("--engine", help="Each step a process here, or a container of Docker or podman (DOCKER_HOST)."),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        envvar="METALEARN_IMAGE",
        help="In which each step runs: by digest, or a tag that stays.",
        show_default="what `make image` builds",
    ),
]
ContainerGpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=0, help="GPUs of each step's container, of this machine's.", show_default="0"),
]

DEFAULT_WORKDIR = DEFAULT
answers = Console(highlight=False)
notices = Console(stderr=True, highlight=False)


def workdir_at(path: Path) -> Workdir:
    """Return the work directory at a path, made absolute: the steps run elsewhere."""
    return Workdir(path.expanduser().resolve())


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def parse_ratios(text: str | None) -> tuple[float, ...] | None:
    """Return the shares of the splits from `0.7,0.15,0.15`.

    Raises:
        UsageError: they are not three numbers.
    """
    from metalearn_core.errors import UsageError

    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3:
        raise UsageError(f"--ratios: expected three shares as 0.7,0.15,0.15, got {text!r}")
    return shares


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table on standard output; columns whose name ends with a space are text, the others figures."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        is_text = column.endswith(" ")
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(column.strip(), justify=justify, overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    answers.print(table)


def percent(value: float | None, half_width: float | None = None) -> str:
    """Return a fraction in percent, with its half-width where there is one."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + (f" ± {100 * half_width:.2f}" if half_width is not None else "")
