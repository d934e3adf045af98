"""The verbs of the pipeline: `run`, `compile` and `runs`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.command_line.cluster_options import PlacementFor, takes_placement_options
from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    ContainerGpusOption,
    EngineOption,
    ImageOption,
    JsonOption,
    WorkdirOption,
    answers,
    notices,
    percent,
    print_json,
    print_table,
    workdir_at,
)
from pipelines.command_line.pipeline_options import command, takes_pipeline_options
from pipelines.command_line.run_summary import print_summary

if TYPE_CHECKING:
    from metalearn_core.tracking import LearnerResult
    from pipelines.config import RunConfig


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn run path/to/images --learner protonet --way 5 --shot 5")(run)
    app.command("compile", epilog="Example:  metalearn compile -o few_shot.yaml")(compile_)
    app.command(epilog="Example:  metalearn runs --limit 5")(runs)


@takes_pipeline_options
def run(
    settings: "RunConfig",
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Where datasets, results and checkpoints go, e.g. s3://bucket/place.",
            show_default="the work directory",
        ),
    ] = None,
    engine: EngineOption = "local",
    image: ImageOption = None,
    gpus: ContainerGpusOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Run the whole pipeline here: build, validate, meta-train, evaluate, select, register, promote."""
    from metalearn_core.model_versions import check_name
    from metalearn_core.steps.requests import gate_rules
    from metalearn_core.storage.place import Place
    from metalearn_core.tracking_server import shown
    from pipelines import config as configuration
    from pipelines.command_line.watch import Watcher
    from pipelines.containers import containers_for
    from pipelines.launch import run_pipeline, warm_engine

    directory = workdir_at(workdir)
    uri = directory.select_tracking()
    with warm_engine(forks=engine == "local") as process:
        place = storage or str(directory.storage(engine))
        Place.at(place).check()
        configuration.check_source(settings)
        gate_rules(settings.gate)
        check_name(settings.model_name)
        items = configuration.checked_items(settings)
        arguments = configuration.pipeline_arguments(settings, items, place, command())
        containers = containers_for(engine, image, gpus or 0, arguments, directory)
        outcome = run_pipeline(process, arguments, directory, Watcher(notices), settings.build_shards, containers)
    summary = {**outcome, "workdir": str(directory.path), "tracking_uri": shown(uri)}
    if json:
        print_json(summary)
    else:
        print_summary(summary)


@takes_placement_options
def compile_(
    placement_for: PlacementFor,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("few_shot.yaml"),
    kubernetes_manifest: Annotated[
        bool, typer.Option("--kubernetes-manifest", help="Write Kubernetes objects instead of KFP's own YAML.")
    ] = False,
    build_shards: Annotated[
        int, typer.Option("--build-shards", min=1, help="Parallel steps that decode the source.")
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            envvar="METALEARN_STORAGE",
            help="Default place for datasets, results and checkpoints: s3://bucket/some/place.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file whose `cluster:` section says what the steps get.", dir_okay=False),
    ] = None,
    image: ImageOption = None,
    json: JsonOption = False,
) -> None:
    """Write the pipeline as YAML that a Kubeflow cluster takes."""
    from components.image import IMAGE, ON_NODES, pinned
    from metalearn_core.errors import UsageError
    from pipelines.cluster.checks import check_storage
    from pipelines.config import CLUSTER, read_section

    if output.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"--output: expected a name that ends in .yaml, got {output}")
    placement = placement_for(read_section(config, CLUSTER) if config else None)
    steps_image = pinned(image) if image else IMAGE
    if storage:
        check_storage(storage)
    from pipelines.few_shot import compile_pipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    compile_pipeline(
        str(output),
        kubernetes_manifest=kubernetes_manifest,
        image=steps_image,
        build_shards=build_shards,
        storage=(storage or "").rstrip("/"),
        placement=placement,
    )
    if not image:
        notices.print(ON_NODES, markup=False, soft_wrap=True)
    if placement.service_account:
        notices.print(
            f"service account {placement.service_account}: a pipeline has no place for it, so give it with each run",
            markup=False,
            soft_wrap=True,
        )
    if json:
        print_json({"file": str(output)})
    else:
        answers.print(f"wrote {output}", markup=False, soft_wrap=True)


def runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of runs to list, newest first.")] = 10,
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
            "\n".join(_result_lines(entry.results)) or entry.reason,
        ]
        for entry in listed
    ]
    print_table(["start ", "status ", "run ", "test accuracy, % "], rows)


def _result_lines(results: "Sequence[LearnerResult]") -> list[str]:
    """Return a line a model: the learner, its training seed where it has several, and its accuracy."""
    times = Counter(result.learner for result in results)
    return [
        f"{result.learner}{f' seed {result.seed}' if times[result.learner] > 1 else ''} "
        f"{percent(result.accuracy, result.ci95)}"
        for result in results
    ]
