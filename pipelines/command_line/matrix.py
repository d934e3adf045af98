"""The verb `matrix`: trained on one domain, tested on another."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    BackboneOption,
    CheckpointSecondsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ProcessesOption,
    QueryOption,
    SetOption,
    ShotOption,
    TrainQueryOption,
    TrainShotOption,
    TrainWayOption,
    WayOption,
    WorkdirOption,
    answers,
    given,
    notices,
    percent,
    print_json,
    print_table,
    workdir_at,
)

if TYPE_CHECKING:
    from metalearn_core.evaluation.matrix import Cell, LearnerMatrix, Matrix

_WIDTH = 80
_CELL_WIDTH, _NARROW_WIDTH = 12, 6


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    example = "Example:  metalearn matrix my-episodes --learner protonet --domains Greek,Latin --episodes 2000"
    app.command(epilog=example)(matrix)


def matrix(
    dataset: Annotated[str, typer.Argument(help="An episode dataset, split by class: a folder or s3:// URI.")],
    learner: Annotated[list[str], typer.Option("--learner", help="A learner to train; repeat to compare several.")],
    domains: Annotated[
        str | None, typer.Option("--domains", help="Names of domains, e.g. Greek,Latin.", show_default="all")
    ] = None,
    backbone: BackboneOption = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", min=1, help="Training budget per model, in episodes.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Training budget per model, in seconds.", show_default="25")
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", help="Test episodes per cell.", show_default="1000")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights and the training episodes.")] = 0,
    precision: PrecisionOption = None,
    set_: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the JSON file and the HTML page.",
            show_default="matrix in the work directory",
        ),
    ] = None,
    checkpoint_seconds: CheckpointSecondsOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Train on each domain, test on each: how far learners carry. The same command goes on where it was cut off."""
    from metalearn_core.errors import UsageError
    from metalearn_core.steps.matrix import cross_domain_matrix, write_matrix
    from metalearn_core.steps.requests import EvaluationRequest, TrainingResources
    from metalearn_core.storage.place import Place
    from pipelines.command_line.watch import watching
    from pipelines.config import learner_items, read_config, train_request

    config = read_config(
        None,
        given(
            learners=learner,
            backbone=backbone,
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_episodes=episodes,
            train_seconds=seconds,
            eval_episodes=eval_episodes,
            seed=seed,
            precision=precision,
            device=device,
            processes=processes,
            checkpoint_seconds=checkpoint_seconds,
        ),
        set_ or [],
        [],
    )
    if config.gate:
        raise UsageError("--set: a matrix has no gate: give its rules to run or promote")
    items = [jsonlib.loads(item) for item in learner_items(config)]
    place = workdir_at(workdir).path
    with watching(notices):
        made = cross_domain_matrix(
            dataset,
            items,
            train_request(config),
            EvaluationRequest(
                way=config.way,
                shot=config.shot,
                query=config.query,
                episodes=config.eval_episodes,
                seed=config.eval_seed,
            ),
            TrainingResources(
                device=config.device, processes=config.processes, checkpoint_seconds=config.checkpoint_seconds
            ),
            Place.at(str(place)),
            [name.strip() for name in domains.split(",") if name.strip()] if domains else [],
        )
    folder = output or place / "matrix"
    write_matrix(folder, made)
    if json:
        print_json({**made.model_dump(mode="json"), "folder": str(folder)})
    else:
        _print(made)
        answers.print(f"\nheat maps:  {folder / 'matrix.html'}", markup=False, soft_wrap=True)


def _print(made: "Matrix") -> None:
    protocol = made.protocol
    answers.print(
        f"{protocol.way}-way {protocol.shot}-shot, {protocol.query} queries per class, {protocol.episodes:,} test "
        f"episodes, {protocol.batch_norm}"
    )
    answers.print("accuracy in %: rows trained on, columns tested on; in brackets: held-out classes of the same domain")
    for one in made.learners:
        answers.print()
        _print_learner(made, one)
    for reason in made.left_out:
        answers.print(reason, style="dim", markup=False, soft_wrap=True)


def _print_learner(made: "Matrix", one: "LearnerMatrix") -> None:
    number = {name: position for position, name in enumerate((*made.train_domains, *made.test_domains))}
    number = {name: position for position, name in enumerate(dict.fromkeys(number), start=1)}
    labels = [f"{number[name]} {name}" for name in made.train_domains]
    room = (_WIDTH - max(map(len, labels))) // len(made.test_domains)
    if room < _NARROW_WIDTH:
        answers.print(f"{one.name}: {len(made.test_domains)} columns are too many for a terminal", markup=False)
    else:
        rows = [
            [label, *(_shown(one.cell(row, column), room >= _CELL_WIDTH) for column in made.test_domains)]
            for label, row in zip(labels, made.train_domains, strict=True)
        ]
        print_table([f"{one.name} ", *(str(number[name]) for name in made.test_domains)], rows)
    legend = [f"{number[name]} {name}" for name in made.test_domains if name not in made.train_domains]
    if legend:
        answers.print(f"tested on alone: {', '.join(legend)}", style="dim", markup=False, soft_wrap=True)
    means = {"same domain": one.within, "other domains": one.across}
    shown = [f"{name} {percent(value)}" for name, value in means.items() if value is not None]
    over = f" over the {len(one.compared)} columns that have both" if one.compared else ""
    answers.print(f"mean{over}: {', '.join(shown)}", markup=False)


def _shown(cell: "Cell", whole: bool) -> str:
    if cell.accuracy is None or cell.ci95 is None:
        return "–"
    text = f"{100 * cell.accuracy:.1f}"
    if whole:
        text += f" ±{100 * cell.ci95:.1f}"
    return f"[{text}]" if cell.trained_on == cell.tested_on else text
