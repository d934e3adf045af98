"""Options that several verbs share, and where a verb's answer goes: tables or one JSON object on standard output."""

import json
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.workdir import DEFAULT, Workdir

DATA, EPISODES, TRAINING, PLACE = "Data", "Episodes", "Training", "Where it runs"
"""The panels of --help."""

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
    str | None,
    typer.Option(
        "--way",
        help="Classes per episode: a number, or a range such as 5-20.",
        show_default="5",
        rich_help_panel=EPISODES,
    ),
]
ShotOption = Annotated[
    str | None,
    typer.Option(
        "--shot",
        help="Support examples per class. With a range such as 1-10, classes differ.",
        show_default="1",
        rich_help_panel=EPISODES,
    ),
]
QueryOption = Annotated[
    int | None,
    typer.Option(
        "--query",
        help="Query examples per class; with a range of shots, at most.",
        show_default="15",
        rich_help_panel=EPISODES,
    ),
]
OwnWayOption = Annotated[
    str | None,
    typer.Option(
        "--way",
        help="Classes per episode: a number, or a range such as 5-20.",
        show_default="the model's",
        rich_help_panel=EPISODES,
    ),
]
OwnShotOption = Annotated[
    str | None,
    typer.Option(
        "--shot", help="Support examples per class, or a range.", show_default="the model's", rich_help_panel=EPISODES
    ),
]
OwnQueryOption = Annotated[
    int | None,
    typer.Option("--query", help="Query examples per class.", show_default="the model's", rich_help_panel=EPISODES),
]
TrainWayOption = Annotated[
    str | None,
    typer.Option(
        "--train-way",
        help="Classes per training episode, or a range.",
        show_default="the learner's",
        rich_help_panel=TRAINING,
    ),
]
TrainShotOption = Annotated[
    str | None,
    typer.Option(
        "--train-shot",
        help="Support examples per class in training episodes, or a range.",
        show_default="the learner's",
        rich_help_panel=TRAINING,
    ),
]
TrainQueryOption = Annotated[
    int | None,
    typer.Option(
        "--train-query",
        help="Query examples per class in training episodes.",
        show_default="the learner's",
        rich_help_panel=TRAINING,
    ),
]
TrainWithinDomainOption = Annotated[
    bool | None,
    typer.Option(
        "--train-within-domain",
        help="Draw the classes of each training episode from one domain.",
        show_default="from all",
        rich_help_panel=TRAINING,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An option of a learner, of its backbone or of the gate, e.g. maml.inner_steps=5, backbone.width=32 or "
        "gate.min_accuracy=0.9 (`metalearn learners` lists all). Repeatable.",
    ),
]
LearnerSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An option of the learner or of its backbone, e.g. maml.inner_steps=5 or backbone.width=32 "
        "(`metalearn learners` lists all). Repeatable.",
    ),
]
GateSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A rule of the gate, e.g. gate.min_accuracy=0.9 (see docs/promotion.md). Repeatable."),
]
PatienceOption = Annotated[
    int | None,
    typer.Option(
        "--patience",
        help="Stop training after this many validations without improvement.",
        show_default="never",
        rich_help_panel=TRAINING,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Numeric precision for training: fp32, bf16 or auto.",
        show_default="auto",
        rich_help_panel=TRAINING,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="Device for training: cpu, cuda or auto.", show_default="auto", rich_help_panel=TRAINING
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="Processes that share each training step's episodes; the model is the same.",
        show_default="1",
        rich_help_panel=TRAINING,
    ),
]
CheckpointSecondsOption = Annotated[
    float | None,
    typer.Option(
        "--checkpoint-seconds",
        help="Longest time between checkpoints, in seconds.",
        show_default="60",
        rich_help_panel=TRAINING,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="Network that embeds examples.", show_default="conv4", rich_help_panel=TRAINING),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="Height and width of stored images, in pixels.", show_default="28", rich_help_panel=DATA
    ),
]
ColorOption = Annotated[
    str | None,
    typer.Option(
        "--color", help="Store images as grey, rgb, or as they are: auto.", show_default="auto", rich_help_panel=DATA
    ),
]
SplitByOption = Annotated[
    str | None,
    typer.Option(
        "--split-by",
        help="Split by whole classes or whole domains: class or domain.",
        show_default="auto",
        rich_help_panel=DATA,
    ),
]
SplitFileOption = Annotated[
    str | None,
    typer.Option(
        "--split-file", help="CSV file with the columns class and split.", show_default=False, rich_help_panel=DATA
    ),
]
RatiosOption = Annotated[
    str | None,
    typer.Option(
        "--ratios",
        help="Shares of training, validation and test classes.",
        show_default="0.7,0.15,0.15",
        rich_help_panel=DATA,
    ),
]
SplitSeedOption = Annotated[
    int | None,
    typer.Option("--split-seed", help="Seed that assigns classes to splits.", show_default="0", rich_help_panel=DATA),
]
RotationsOption = Annotated[
    str | None,
    typer.Option(
        "--rotations",
        help="Splits in which rotated images are further classes: train, all, none.",
        show_default="train",
        rich_help_panel=DATA,
    ),
]
SplitFromOption = Annotated[
    str | None,
    typer.Option(
        "--split-from",
        help="Earlier dataset whose classes keep their splits.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
MinExamplesOption = Annotated[
    int | None,
    typer.Option(
        "--min-examples", help="Leave out classes with fewer examples.", show_default="1", rich_help_panel=DATA
    ),
]
MaxUnreadableOption = Annotated[
    float | None,
    typer.Option(
        "--max-unreadable",
        help="Stop if a larger share of the files is unreadable.",
        show_default="0.05",
        rich_help_panel=DATA,
    ),
]
BuildShardsOption = Annotated[
    int | None,
    typer.Option(
        "--build-shards", help="Parallel steps that decode the source.", show_default="1", rich_help_panel=DATA
    ),
]

EngineOption = Annotated[
    Literal["local", "container"],
    typer.Option(
        "--engine",
        help="Run each step as a local process, or in a container of Docker or podman (DOCKER_HOST).",
        rich_help_panel=PLACE,
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        envvar="METALEARN_IMAGE",
        help="Container image for the steps, by digest or by an immutable tag.",
        show_default="what `make image` builds",
        rich_help_panel=PLACE,
    ),
]
ContainerGpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=0, help="Local GPUs for each step's container.", show_default="0", rich_help_panel=PLACE
    ),
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


def print_reasons(reasons: Iterable[str]) -> None:
    """Print an item a reason on standard output, wrapped to the width of the console."""
    for reason in reasons:
        item = wrap(
            reason,
            answers.width,
            initial_indent="  - ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        answers.print("\n".join(item), soft_wrap=True, markup=False)


def percent(value: float | None, half_width: float | None = None) -> str:
    """Return a fraction in percent, with its half-width where there is one."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + (f" ± {100 * half_width:.2f}" if half_width is not None else "")
