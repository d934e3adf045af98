"""The verbs of the pipeline: `run`, `compile` and `runs`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    BackboneOption,
    BuildShardsOption,
    CheckpointSecondsOption,
    ColorOption,
    DeviceOption,
    EngineOption,
    GpusOption,
    ImageOption,
    ImageSizeOption,
    JsonOption,
    MaxUnreadableOption,
    MinExamplesOption,
    PatienceOption,
    PrecisionOption,
    ProcessesOption,
    QueryOption,
    RatiosOption,
    RotationsOption,
    SetOption,
    ShotOption,
    SplitByOption,
    SplitFileOption,
    SplitFromOption,
    SplitSeedOption,
    TrainQueryOption,
    TrainShotOption,
    TrainWayOption,
    WayOption,
    WorkdirOption,
    answers,
    given,
    notices,
    parse_ratios,
    percent,
    print_json,
    print_table,
    workdir_at,
)


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn run path/to/images --learner protonet --way 5 --shot 5")(run)
    app.command("compile", epilog="Example:  metalearn compile -o few_shot.yaml")(compile_)
    app.command(epilog="Example:  metalearn runs --limit 5")(runs)


def run(
    source: Annotated[
        str | None, typer.Argument(help="`glyphs`, a folder of images, or Parquet.", show_default="glyphs")
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option("--learner", help="Repeat it to compare.", show_default="protonet, maml, transfer"),
    ] = None,
    backbone: BackboneOption = None,
    way: WayOption = None,
    shot: ShotOption = None,
    query: QueryOption = None,
    train_way: TrainWayOption = None,
    train_shot: TrainShotOption = None,
    train_query: TrainQueryOption = None,
    train_episodes: Annotated[
        int | None, typer.Option("--train-episodes", help="Training budget of each learner.", show_default=False)
    ] = None,
    train_seconds: Annotated[
        float | None, typer.Option("--train-seconds", help="The same in seconds.", show_default="25")
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option("--eval-episodes", help="Test (and validation) episodes.", show_default="1000")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="Name of the registered model.", show_default="few-shot")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="MLflow experiment.", show_default="few-shot")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of training.", show_default="0")] = None,
    patience: PatienceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    checkpoint_seconds: CheckpointSecondsOption = None,
    set_: SetOption = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="Values to try, as maml.inner_lr=0.1,0.4; repeatable.")
    ] = None,
    sweep_samples: Annotated[
        int | None, typer.Option("--sweep-samples", help="Draw so many points of the sweep.", show_default="all")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with these options, as way: 5.", show_default=False)
    ] = None,
    image_size: ImageSizeOption = None,
    color: ColorOption = None,
    split_by: SplitByOption = None,
    split_file: SplitFileOption = None,
    split_from: SplitFromOption = None,
    ratios: RatiosOption = None,
    split_seed: SplitSeedOption = None,
    rotations: RotationsOption = None,
    min_examples: MinExamplesOption = None,
    max_unreadable: MaxUnreadableOption = None,
    build_shards: BuildShardsOption = None,
    engine: EngineOption = "local",
    image: ImageOption = None,
    gpus: GpusOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Run the whole pipeline here: build, validate, meta-train, evaluate, select, register, promote."""
    from metalearn_core.model_versions import check_name
    from metalearn_core.steps.requests import gate_rules
    from metalearn_core.tracking_server import shown
    from pipelines import config as configuration
    from pipelines.command_line.watch import Watcher
    from pipelines.containers import containers_for
    from pipelines.launch import run_pipeline, warm_engine

    settings = configuration.read_config(
        config,
        given(
            source=source,
            learners=learner or None,
            backbone=backbone,
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_episodes=train_episodes,
            train_seconds=train_seconds,
            eval_episodes=eval_episodes,
            model_name=model_name,
            experiment=experiment,
            seed=seed,
            patience=patience,
            precision=precision,
            device=device,
            processes=processes,
            checkpoint_seconds=checkpoint_seconds,
            sweep_samples=sweep_samples,
            image_size=image_size,
            color=color,
            split_by=split_by,
            split_file=split_file,
            split_from=split_from,
            ratios=parse_ratios(ratios),
            split_seed=split_seed,
            rotations=rotations,
            min_examples=min_examples,
            max_unreadable=max_unreadable,
            build_shards=build_shards,
        ),
        set_ or [],
        sweep or [],
    )
    directory = workdir_at(workdir)
    uri = directory.select_tracking()
    with warm_engine() as process:
        configuration.check_source(settings)
        gate_rules(settings.gate)
        check_name(settings.model_name)
        items = configuration.learner_items(settings)
        storage = directory.storage(engine)
        arguments = configuration.pipeline_arguments(settings, items, storage, _command())
        containers = containers_for(engine, image, gpus or 0, arguments, directory)
        outcome = run_pipeline(process, arguments, directory, Watcher(notices), settings.build_shards, containers)
    summary = {**outcome, "workdir": str(directory.path), "tracking_uri": shown(uri)}
    if json:
        print_json(summary)
    else:
        _print_summary(summary)


def _command() -> str:
    import shlex

    return shlex.join(["metalearn", *sys.argv[1:]])


def _print_summary(summary: dict[str, Any]) -> None:
    from metalearn_core.data.manifest import SPLITS

    dataset, results = summary["dataset"], summary["results"]
    splits = ", ".join(f"{dataset['splits'][split]} {split}" for split in SPLITS)
    first = results[0]
    answers.print(f"\ndataset {dataset['digest']}")
    answers.print(f"{dataset['examples']:,} examples; classes: {splits}")
    answers.print(
        f"{first['way']}-way {first['shot']}-shot, {first['query']} queries a class, "
        f"{first['episodes']:,} {first['split']} episodes, {first['batch_norm']}"
    )
    answers.print("accuracy in %, with the half-width of its 95 % interval\n")
    rows = [
        [
            ("* " if result["bundle_digest"] == summary["selected"]["bundle_digest"] else "  ") + result["name"],
            percent(result["accuracy"], result["ci95"]),
            percent(result["validation_accuracy"]),
            f"{result['train_seconds']:.0f}",
            f"{result['train_episodes']:,}",
        ]
        for result in results
    ]
    print_table(["  learner ", "test", "validation", "train s", "episodes"], rows)
    promotion, selected = summary["promotion"], summary["selected"]
    stays = promotion["champion_before"] == selected["version"]
    verdict = "stays the champion" if stays else "is promoted" if promotion["promoted"] else "is not promoted"
    answers.print(f"\n* selected on validation; {selected['model']} {verdict}:")
    for reason in promotion["reasons"]:
        answers.print(f"  - {reason}", soft_wrap=True, markup=False)
    answers.print(f"\nlook at it:  {_look(summary['workdir'])}", markup=False, soft_wrap=True)


def _look(workdir: str) -> str:
    """Return the command that opens MLflow's page on this work directory, as this one was called."""
    import shlex
    import shutil

    program = sys.argv[0] if shutil.which("metalearn") is None else "metalearn"
    default = workdir_at(DEFAULT_WORKDIR).path
    return shlex.join([program, "ui", *([] if Path(workdir) == default else ["--workdir", workdir])])


def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("few_shot.yaml"),
    kubernetes_manifest: Annotated[
        bool, typer.Option("--kubernetes-manifest", help="Kubernetes objects instead of KFP's own form.")
    ] = False,
    build_shards: Annotated[int, typer.Option("--build-shards", min=1, help="Steps that share the decoding.")] = 1,
    image: ImageOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Write the pipeline as YAML that a Kubeflow cluster takes."""
    from metalearn_core.errors import UsageError

    if output.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"--output: expected a name that ends in .yaml, got {output}")
    from components.image import IMAGE, pinned
    from pipelines.few_shot import compile_pipeline

    pinned_image = pinned(image) if image else IMAGE
    output.parent.mkdir(parents=True, exist_ok=True)
    compile_pipeline(
        str(output), kubernetes_manifest=kubernetes_manifest, image=pinned_image, build_shards=build_shards
    )
    if json:
        print_json({"file": str(output)})
    else:
        answers.print(f"wrote {output}", markup=False, soft_wrap=True)


def runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 10,
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "few-shot",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """List pipeline runs, newest first, with what each learner reached."""
    from dataclasses import asdict

    from metalearn_core import tracking

    workdir_at(workdir).open_tracking()
    listed = tracking.list_runs(limit, experiment)
    if json:
        print_json({"runs": [asdict(entry) for entry in listed]})
        return
    if not listed:
        answers.print("there are no runs yet; `metalearn run` makes one")
        return
    rows = [
        [
            entry.start.astimezone().strftime("%m-%d %H:%M"),
            entry.status.lower(),
            entry.name,
            "\n".join(f"{result.learner} {percent(result.accuracy, result.ci95)}" for result in entry.results)
            or entry.reason,
        ]
        for entry in listed
    ]
    print_table(["start ", "status ", "run ", "test accuracy, % "], rows)
