"""The verbs that make and measure models: `train`, `evaluate`, `compare`."""

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    BackboneOption,
    CheckpointSecondsOption,
    DeviceOption,
    JsonOption,
    LearnerSetOption,
    OwnQueryOption,
    OwnShotOption,
    OwnWayOption,
    PatienceOption,
    PrecisionOption,
    ProcessesOption,
    QueryOption,
    ShotOption,
    TrainQueryOption,
    TrainShotOption,
    TrainWayOption,
    TrainWithinDomainOption,
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
    from metalearn_core.evaluation.compare import DomainComparison

LEAST_P = 1e-16  # smaller ones are the limits of the arithmetic
ModelArgument = Annotated[str, typer.Argument(help="A bundle (a folder, s3://…), models:/name@alias, or name@alias.")]
DatasetArgument = Annotated[str, typer.Argument(help="An episode dataset: a folder or an s3:// URI.")]
TasksArgument = Annotated[
    str, typer.Argument(help="An episode dataset: a folder or an s3:// URI; or `sinusoid`, for regression.")
]
SplitOption = Annotated[str, typer.Option("--split", help="train, validation or test.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the stream of episodes.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn train my-episodes --learner maml -o my-model --seconds 60")(train)
    app.command(epilog="Example:  metalearn evaluate my-model my-episodes --way 5 --shot 1")(evaluate)
    app.command(epilog="Example:  metalearn compare few-shot@champion few-shot@candidate my-episodes")(compare)


def train(
    dataset: TasksArgument,
    learner: Annotated[str, typer.Option("--learner", help="A learner that `metalearn learners` lists.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder or s3:// URI for the bundle.")],
    backbone: BackboneOption = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    train_within_domain: TrainWithinDomainOption = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Training budget, in episodes (tasks).", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Training budget, in seconds.", show_default="25")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights and the training episodes.")] = 0,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    set_: LearnerSetOption = None,
    checkpoint_dir: Annotated[
        str | None,
        typer.Option(
            "--checkpoint-dir", help="Folder or s3:// URI for checkpoints.", show_default="in the work directory"
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start from the beginning, not from a checkpoint.")
    ] = False,
    checkpoint_seconds: CheckpointSecondsOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk", min=1, help="Episodes that a thread or GPU takes at once.", show_default="the quickest"
        ),
    ] = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Meta-train one learner; a training that was cut off goes on from its checkpoint."""
    from metalearn_core.data.tasks import SINUSOID, SINUSOID_POINTS
    from metalearn_core.errors import UsageError
    from metalearn_core.evaluation.metric import ACCURACY, SQUARED_ERROR
    from metalearn_core.steps.requests import TrainingResources
    from metalearn_core.steps.training import train_bundle
    from pipelines.command_line.watch import watching
    from pipelines.config import learner_items, read_config, train_request

    points = SINUSOID_POINTS if dataset == SINUSOID else None
    config = read_config(
        None,
        given(
            learners=[learner],
            backbone=backbone,
            way=way,
            shot=points if shot is None else shot,
            query=points if query is None else query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_within_domain=train_within_domain,
            train_episodes=episodes,
            train_seconds=seconds,
            seed=seed,
            patience=patience,
            precision=precision,
            device=device,
            processes=processes,
            checkpoint_seconds=checkpoint_seconds,
        ),
        set_ or [],
        [],
    )
    if config.gate:
        raise UsageError("--set: training has no gate: give its rules to run or promote")
    [item] = learner_items(config)
    request = train_request(config)
    if dataset == SINUSOID:
        if way is not None or train_way is not None:
            raise UsageError(f"--way, --train-way: {SINUSOID} is regression, it has no classes: leave them out")
        request = request.model_copy(update={"way": 1})
    with watching(notices):
        record = train_bundle(
            dataset,
            jsonlib.loads(item),
            request,
            output,
            checkpoints=checkpoint_dir or str(workdir_at(workdir).path / "checkpoints"),
            restart=restart,
            resources=TrainingResources(
                device=config.device,
                processes=config.processes,
                chunk=chunk or 0,
                checkpoint_seconds=config.checkpoint_seconds,
            ),
        )
    if json:
        print_json(record)
        return
    metric = SQUARED_ERROR if dataset == SINUSOID else ACCURACY
    answers.print(
        f"{learner}: {record['train_episodes']:,} episodes of {record['train_shape']} "
        f"in {record['train_seconds']:.0f} s, "
        f"validation {metric.shown(record['best_validation'])}",
        soft_wrap=True,
    )
    answers.print(f"bundle: {output}", soft_wrap=True, markup=False)


def evaluate(
    model: ModelArgument,
    dataset: TasksArgument,
    split: SplitOption = "test",
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="Number of test episodes.")] = 1000,
    seed: SeedOption = 0,
    batch_norm: Annotated[str, typer.Option("--batch-norm", help="inductive or transductive.")] = "inductive",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Evaluate a model on seeded episodes: accuracy with intervals, overall and by domain; in regression, its error."""
    from metalearn_core.bundle import load_bundle, read_bundle
    from metalearn_core.bundle_fetch import resolve_model
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.tasks import open_tasks
    from metalearn_core.evaluation import evaluate as evaluation
    from metalearn_core.evaluation.regression import RegressionEvaluation
    from metalearn_core.steps.training import evaluation_result
    from pipelines.command_line.watch import watching

    workdir_at(workdir).open_for(model)
    path = resolve_model(model)
    description = read_bundle(path)
    defaults = description.episode
    protocol = evaluation.make_protocol(
        split=split,
        **{**defaults.model_dump(), **given(way=way, shot=shot, query=query)},
        episodes=episodes,
        seed=seed,
        batch_norm=batch_norm,
    )
    with watching(notices):
        tasks = open_tasks(dataset)
        result: Any
        if isinstance(tasks, EpisodeDataset):
            result, _ = evaluation.evaluate_bundle(path, tasks, protocol)
        else:
            result = evaluation.evaluate(load_bundle(path)[0], tasks, protocol)
    if json:
        print_json({**evaluation_result(result.model_dump(mode="json")), "bundle": str(path)})
        return
    if isinstance(result, RegressionEvaluation):
        after = f"{result.points} points"
        if result.adaptation_steps is not None:
            after += f" and {result.adaptation_steps} steps"
        spread = "" if result.ci95 is None else f" ± {result.ci95:.4f}"
        answers.print(
            f"{description.learner}: {protocol.episodes:,} {protocol.split} episodes, {protocol.query} queries each, "
            f"seed {protocol.seed}\nmean squared error {result.mse:.4f}{spread} after {after}"
        )
        return
    answers.print(
        f"{description.learner}: {protocol.way}-way {protocol.shot}-shot, {protocol.query} queries per class, "
        f"{protocol.episodes} {protocol.split} episodes, seed {protocol.seed}, {protocol.batch_norm}"
    )
    answers.print(f"accuracy {percent(result.accuracy, result.ci95)} % (these classes)")
    low, high = (min(1.0, max(0.0, result.accuracy + sign * result.ci95_classes)) for sign in (-1, 1))
    answers.print(f"new classes like these: {percent(low)} to {percent(high)} %")
    answers.print(f"expected calibration error {result.ece:.3f}")
    if result.leakage:
        answers.print(result.leakage.finding, markup=False)
    rows = [
        [domain, percent(figures.accuracy, figures.ci95) if figures else "–"]
        for domain, figures in sorted(result.by_domain.items())
    ]
    if rows:
        answers.print()
        print_table(["within domain ", "accuracy, %"], rows)
        if None in result.by_domain.values():
            answers.print(f"–: fewer than {protocol.shape.least_way} classes, or too few examples")


def compare(
    model_a: Annotated[str, typer.Argument(help="A bundle, models:/name@alias, or name@alias.")],
    model_b: Annotated[str, typer.Argument(help="The model to compare with.")],
    dataset: Annotated[
        str | None, typer.Argument(help="An episode dataset.", show_default="the one that model A was trained on")
    ] = None,
    split: SplitOption = "test",
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="Number of test episodes.")] = 1000,
    seed: SeedOption = 0,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Compare two models on the same episodes: the difference with its interval."""
    from metalearn_core.bundle import read_bundle, verify_bundle
    from metalearn_core.bundle_fetch import resolve_model
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.errors import UsageError
    from metalearn_core.evaluation.compare import compare_bundles
    from metalearn_core.evaluation.evaluate import make_protocol
    from pipelines.command_line.watch import watching

    workdir_at(workdir).open_for(model_a, model_b)
    paths = resolve_model(model_a), resolve_model(model_b)
    if verify_bundle(paths[0]) == verify_bundle(paths[1]):
        raise UsageError(f"{model_a} and {model_b} are the same model: there is nothing to compare")
    description = read_bundle(paths[0])
    defaults = description.episode
    protocol = make_protocol(
        split=split,
        **{**defaults.model_dump(), **given(way=way, shot=shot, query=query)},
        episodes=episodes,
        seed=seed,
        batch_norm="inductive",
    )
    opened = EpisodeDataset.open(dataset or description.lineage.dataset_uri)
    with watching(notices):
        comparison = compare_bundles(*paths, opened, protocol, names=(model_a, model_b))
    if json:
        print_json(comparison.model_dump(mode="json"))
        return
    print_table(
        ["model ", "accuracy, %", "calibration error"],
        [
            [model_a, percent(comparison.accuracy_a), f"{comparison.ece_a:.3f}"],
            [model_b, percent(comparison.accuracy_b), f"{comparison.ece_b:.3f}"],
        ],
    )
    p_value = f"p = {comparison.p_value:.2g}" if comparison.p_value >= LEAST_P else f"p < {LEAST_P:g}"
    answers.print(f"\n{comparison.conclusion} ({p_value})", markup=False)
    rows = [[domain, *_difference(found)] for domain, found in sorted(comparison.by_domain.items()) if found]
    if rows:
        answers.print()
        print_table(["within domain ", "a, %", "b, %", "a − b, points"], rows)
        level = f"{100 * (1 - comparison.alpha):g} %"
        answers.print(
            f"These intervals hold together at {level}: each is widened for {len(rows)} domains (Bonferroni)."
        )
    for domain, reason in sorted(comparison.by_domain_reason.items()):
        answers.print(f"{domain}: not compared: {reason}", markup=False)
    if comparison.leakage:
        answers.print(comparison.leakage.finding, markup=False)


def _difference(found: "DomainComparison") -> list[str]:
    middle, low, high = (100 * value for value in (found.difference, found.low, found.high))
    return [percent(found.accuracy_a), percent(found.accuracy_b), f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"]
