"""The verbs around one model: `learners`, `recipes`, `train`, `evaluate`, `predict`, `compare`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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

ModelArgument = Annotated[str, typer.Argument(help="A bundle (a folder, s3://…), models:/name@alias, or name@alias.")]
DatasetArgument = Annotated[str, typer.Argument(help="An episode dataset: a folder or an s3:// address.")]
SplitOption = Annotated[str, typer.Option("--split", help="train, validation or test.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the stream of episodes.")]
_SHOWN_PROBABILITIES = 3


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn learners --json")(learners)
    app.command(epilog="Example:  metalearn recipes omniglot-5way-protonet")(recipes)
    app.command(epilog="Example:  metalearn train my-episodes --learner maml -o my-model --seconds 60")(train)
    app.command(epilog="Example:  metalearn evaluate my-model my-episodes --way 5 --shot 1")(evaluate)
    app.command(epilog="Example:  metalearn predict few-shot@champion --support labelled/ --query unlabelled/")(predict)
    app.command(epilog="Example:  metalearn compare few-shot@champion few-shot@candidate my-episodes")(compare)


def learners(workdir: WorkdirOption = DEFAULT_WORKDIR, json: JsonOption = False) -> None:
    """List the learners with their options and defaults; then the options of backbones, and the gate's rules."""
    from metalearn_core.errors import UsageError, one_line
    from metalearn_core.gate import GateRules
    from metalearn_core.learners import BACKBONES, learner_class, learner_names

    listed = []
    for name in learner_names():
        try:
            listed.append(_description(learner_class(name)))
        except UsageError as error:  # a broken plugin hides no other learner
            notices.print(f"warning: {one_line(error)}", soft_wrap=True, markup=False)
    if json:
        print_json(listed)
        return
    for entry in listed:
        answers.print(f"[bold]{entry['name']}[/]  {entry['family']}", soft_wrap=True)
        answers.print(Padding(Text(entry["paper"]), (0, 0, 0, 2)))
        _print_options(entry["options"])
    for name, kind in sorted(BACKBONES.items()):
        answers.print(f"[bold]{name}[/]  backbone: --backbone {name}, options as --set backbone.…", soft_wrap=True)
        _print_options(_options(kind.Config))
    answers.print("[bold]gate[/]  the rules of promotion: --set gate.…", soft_wrap=True)
    _print_options(_options(GateRules))


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one, to copy and change it.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the papers' settings that `run --config NAME` takes, or print one."""
    from pipelines.recipes import config_file
    from pipelines.recipes import recipes as known

    listed = known()
    if name is not None:
        found = config_file(Path(name))
        listed = [recipe for recipe in listed if recipe.file == found]
        if not json:
            typer.echo(found.read_text(), nl=False)
            return
    if json:
        print_json([{"name": entry.name, "summary": entry.summary, "file": str(entry.file)} for entry in listed])
        return
    print_table(["recipe ", "what it is "], [[entry.name, entry.summary] for entry in listed])


def _options(config: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {"default": field.default, "description": field.description or ""}
        for name, field in config.model_fields.items()
    }


def _print_options(options: dict[str, dict[str, Any]]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, option in options.items():
        default = option["default"]
        shown = f"{default:g}" if isinstance(default, float) else default
        table.add_row(Text(f"{name} = {shown}", no_wrap=True), Text(option["description"], style="dim"))
    answers.print(Padding(table, (0, 0, 1, 4)))


def _description(learner: Any) -> dict[str, Any]:
    info = learner.info
    return {
        "name": info.name,
        "family": info.family,
        "paper": info.paper,
        "transductive": info.transductive,
        "options": _options(learner.Config),
    }


def train(
    dataset: DatasetArgument,
    learner: Annotated[str, typer.Option("--learner", help="One that `metalearn learners` lists.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the bundle, or s3:// address.")],
    backbone: BackboneOption = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Training episodes (tasks).", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="The budget in seconds.", show_default="25")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights and episodes.")] = 0,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    set_: LearnerSetOption = None,
    checkpoint_dir: Annotated[
        str | None,
        typer.Option("--checkpoint-dir", help="Where checkpoints are kept.", show_default="in the work directory"),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, not from a checkpoint.")] = False,
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
    from metalearn_core.errors import UsageError
    from metalearn_core.steps.requests import TrainingResources
    from metalearn_core.steps.training import train_bundle
    from pipelines.command_line.watch import watching
    from pipelines.config import learner_items, read_config, train_request

    config = read_config(
        None,
        given(
            learners=[learner],
            backbone=backbone,
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
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
    with watching(notices):
        record = train_bundle(
            dataset,
            jsonlib.loads(item),
            train_request(config),
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
    answers.print(
        f"{learner}: {record['train_episodes']:,} episodes of {record['train_shape']} "
        f"in {record['train_seconds']:.0f} s, "
        f"validation accuracy {percent(record['best_validation'])} %",
        soft_wrap=True,
    )
    answers.print(f"bundle: {output}", soft_wrap=True, markup=False)


def evaluate(
    model: ModelArgument,
    dataset: DatasetArgument,
    split: SplitOption = "test",
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="How many.")] = 1000,
    seed: SeedOption = 0,
    batch_norm: Annotated[str, typer.Option("--batch-norm", help="inductive or transductive.")] = "inductive",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Evaluate a model on seeded episodes: accuracy with intervals, overall and by domain."""
    from metalearn_core.bundle import load_bundle, resolve_model
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.evaluation import evaluate as evaluation
    from metalearn_core.steps.training import evaluation_result
    from pipelines.command_line.watch import watching

    workdir_at(workdir).open_for(model)
    path = resolve_model(model)
    learner, description = load_bundle(path)
    defaults = description.episode
    protocol = evaluation.make_protocol(
        split=split,
        **{**defaults.model_dump(), **given(way=way, shot=shot, query=query)},
        episodes=episodes,
        seed=seed,
        batch_norm=batch_norm,
    )
    with watching(notices):
        result = evaluation.evaluate(learner, EpisodeDataset.open(dataset), protocol)
    if json:
        print_json({**evaluation_result(result.model_dump(mode="json")), "bundle": str(path)})
        return
    answers.print(
        f"{description.learner}: {protocol.way}-way {protocol.shot}-shot, {protocol.query} queries a class, "
        f"{protocol.episodes} {protocol.split} episodes, seed {protocol.seed}, {protocol.batch_norm}",
        soft_wrap=True,
    )
    answers.print(f"accuracy {percent(result.accuracy, result.ci95)} % (these classes)", soft_wrap=True)
    low, high = (min(1.0, max(0.0, result.accuracy + sign * result.ci95_classes)) for sign in (-1, 1))
    answers.print(f"new classes like these: {percent(low)} to {percent(high)} %", soft_wrap=True)
    rows = [
        [domain, percent(figures.accuracy, figures.ci95) if figures else "–"]
        for domain, figures in sorted(result.by_domain.items())
    ]
    if rows:
        answers.print()
        print_table(["within domain ", "accuracy, %"], rows)
        if None in result.by_domain.values():
            answers.print(f"–: fewer than {protocol.way} classes, or too few examples")


def predict(
    model: ModelArgument,
    support: Annotated[Path, typer.Option("--support", help="A folder of labelled images: a folder a class.")],
    query: Annotated[Path, typer.Option("--query", help="An image, or a folder of images at any depth.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Predict the class of each query image from a few labelled ones."""
    from metalearn_core.model import load_model
    from pipelines.folders import image_files, labelled_images

    files, labels = labelled_images(support)
    queries = image_files(query)
    workdir_at(workdir).open_for(model)
    prediction = load_model(model).predict(files, labels, queries)
    predictions: list[dict[str, Any]] = [
        {
            "file": str(file),
            "label": label,
            "probabilities": {name: float(p) for name, p in zip(prediction.classes, row, strict=True)},
        }
        for file, label, row in zip(queries, prediction.labels, prediction.probabilities, strict=True)
    ]
    if json:
        print_json({"predictions": predictions})
        return
    rows = []
    for entry in predictions:
        best = sorted(entry["probabilities"].items(), key=lambda item: -item[1])[:_SHOWN_PROBABILITIES]
        shown = ", ".join(f"{name} {100 * p:.0f} %" for name, p in best)
        rows.append([str(entry["file"]), str(entry["label"]), shown])
    print_table(["file ", "label ", "probabilities "], rows)


def compare(
    model_a: Annotated[str, typer.Argument(help="A bundle, models:/name@alias, or name@alias.")],
    model_b: Annotated[str, typer.Argument(help="Likewise.")],
    dataset: Annotated[
        str | None, typer.Argument(help="An episode dataset.", show_default="the one that model A was trained on")
    ] = None,
    split: SplitOption = "test",
    way: OwnWayOption = None,
    shot: OwnShotOption = None,
    query: OwnQueryOption = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="How many.")] = 1000,
    seed: SeedOption = 0,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Compare two models on the same episodes: the difference with its interval."""
    from metalearn_core.bundle import read_bundle, resolve_model, verify_bundle
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
        ["model ", "accuracy, %"],
        [[model_a, percent(comparison.accuracy_a)], [model_b, percent(comparison.accuracy_b)]],
    )
    answers.print(f"\n{comparison.conclusion}", markup=False)
