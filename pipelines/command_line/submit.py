"""The verb `submit`: the whole pipeline on a Kubeflow cluster, once or on a schedule."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metalearn_core.errors import UsageError
from pipelines.command_line.cluster_options import PlacementFor, takes_placement_options
from pipelines.command_line.options import ImageOption, JsonOption, notices, print_json
from pipelines.command_line.pipeline_options import command, takes_pipeline_options
from pipelines.command_line.submitted import await_end, described, print_summary, signals_told, start

if TYPE_CHECKING:
    from pipelines.cluster.client import ClusterClient
    from pipelines.cluster.connection import Connection
    from pipelines.cluster.placement import Placement
    from pipelines.cluster.schedule import Schedule
    from pipelines.cluster.submission import Version
    from pipelines.cluster.view import RunView
    from pipelines.config import RunConfig

_CLUSTER, _SCHEDULE, _CREDENTIALS = "Cluster", "Schedule", "Credentials (a token or cookie itself is never an option)"


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog="Example:  metalearn submit s3://data/photos --storage s3://data/metalearn "
        "--image registry.example.com/metalearn:0.1.0 "
        "--host https://kubeflow.example.com/pipeline --namespace team-a --wait"
    )(submit)


@takes_pipeline_options
@takes_placement_options
def submit(
    settings: "RunConfig",
    placement_for: PlacementFor,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            envvar="KF_PIPELINES_ENDPOINT",
            help="URL of Kubeflow Pipelines, e.g. https://kfp.example.com.",
            rich_help_panel=_CLUSTER,
        ),
    ],
    storage: Annotated[
        str,
        typer.Option(
            "--storage",
            envvar="METALEARN_STORAGE",
            help="Where datasets, results and checkpoints go: s3://bucket/some/place.",
            rich_help_panel=_CLUSTER,
        ),
    ],
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            envvar="MLFLOW_TRACKING_URI",
            help="The MLflow server, as the cluster's pods reach it.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", help="Namespace of the run, on a multi-user Kubeflow.", rich_help_panel=_CLUSTER),
    ] = None,
    service_account: Annotated[
        str | None,
        typer.Option(
            "--service-account",
            help="Service account of the pods.",
            show_default="the cluster's",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    pipeline_root: Annotated[
        str | None,
        typer.Option(
            "--pipeline-root",
            help="Where KFP keeps artifacts.",
            show_default="the cluster's",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ui_host: Annotated[
        str | None,
        typer.Option(
            "--ui-host",
            envvar="KF_PIPELINES_UI_ENDPOINT",
            help="URL of the KFP UI, for links.",
            show_default="--host",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.1, metavar="<float>", help="Seconds that one answer may take.", rich_help_panel=_CLUSTER
        ),
    ] = 60,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the steps until the run has ended.", rich_help_panel=_CLUSTER)
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Run repeatedly: second minute hour day month weekday, e.g. '0 0 3 * * *'.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            "--max-concurrency",
            metavar="<int>",
            min=1,
            max=10,
            help="Runs of the schedule at one time, 1 to 10.",
            show_default="1",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    catchup: Annotated[
        bool | None,
        typer.Option(
            "--catchup/--no-catchup",
            help="Make up for every missed run, or only for the last one.",
            show_default="no-catchup",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="File with a bearer token; or set METALEARN_KFP_TOKEN or METALEARN_KFP_TOKEN_FILE. In a pod, the "
            "default is that of its service account.",
            rich_help_panel=_CREDENTIALS,
        ),
    ] = None,
    cookie_file: Annotated[
        Path | None,
        typer.Option(
            "--cookie-file",
            help="File with a session cookie (Dex), e.g. authservice_session=…; or set METALEARN_KFP_COOKIE or "
            "METALEARN_KFP_COOKIE_FILE.",
            rich_help_panel=_CREDENTIALS,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            envvar="METALEARN_KFP_CA_FILE",
            help="Certificates to verify the host's with.",
            show_default="the usual ones",
            rich_help_panel=_CREDENTIALS,
        ),
    ] = None,
    image: ImageOption = None,
    json: JsonOption = False,
) -> None:
    """Submit the whole pipeline to Kubeflow: upload this version of it, and start a run or a schedule."""
    from components.image import IMAGE, ON_NODES, pinned
    from pipelines.cluster.checks import check_tracking
    from pipelines.cluster.connection import Connection, read_credentials
    from pipelines.cluster.submission import Order
    from pipelines.cluster.view import RunView
    from pipelines.config import pipeline_arguments

    plan = _schedule(schedule, max_concurrency, catchup, wait)
    placement = placement_for(settings.cluster, service_account=service_account)
    steps_image = pinned(image) if image else IMAGE
    _check_device(settings, placement)
    items = _checked(settings, storage)
    uri = check_tracking(tracking_uri, placement)
    credentials = read_credentials(token_file, cookie_file)
    connection = Connection(host.rstrip("/"), ui_host or host, namespace, credentials, ca_file, timeout)
    view = RunView(notices)
    if not image:
        view.note(ON_NODES)
    client, version, experiment_id = _uploaded(connection, settings, uri, steps_image, placement, view)
    arguments = {
        **pipeline_arguments(settings, items, storage.rstrip("/"), command()),
        **placement.arguments(),
        "kfp_pipeline_id": version.pipeline_id,
        "kfp_pipeline_version_id": version.version_id,
    }
    account = placement.service_account or None
    order = Order(_run_name(settings), experiment_id, arguments, pipeline_root, account)
    doubt = f"it may have been started all the same: look at {connection.page('runs')} first"
    with signals_told(doubt):
        started = start(client, version, order, plan, view)
    summary = {**started, **described(settings, version, order, namespace, uri)}
    try:
        if not json:
            print_summary(summary)
        if wait:
            await_end(client, summary, view)
    finally:
        if json:
            print_json(summary)


def _schedule(cron: str | None, max_concurrency: int | None, catchup: bool | None, wait: bool) -> "Schedule | None":
    from pipelines.cluster.schedule import Schedule, check_cron

    if cron is None:
        if max_concurrency is not None or catchup is not None:
            raise UsageError("--max-concurrency and --catchup are of a schedule: give --schedule too")
        return None
    if wait:
        raise UsageError("--wait and --schedule are both given: a schedule has no end to wait for")
    return Schedule(check_cron(cron), max_concurrency or 1, bool(catchup))


def _checked(settings: "RunConfig", storage: str) -> list[str]:
    """Return the learners of the run; refuse here what a step on the cluster would refuse after a pod has started."""
    from metalearn_core.model_versions import check_name
    from metalearn_core.steps.requests import gate_rules
    from pipelines.cluster.checks import check_build, check_places
    from pipelines.config import checked_items

    check_places(settings, storage)
    check_build(settings)
    gate_rules(settings.gate)
    check_name(settings.model_name)
    return checked_items(settings)


def _check_device(settings: "RunConfig", placement: "Placement") -> None:
    """Refuse a processor beside GPUs: it would hold them."""
    if placement.train.gpus and settings.device == "cpu":
        raise UsageError(f"--gpus {placement.train.gpus} and --device cpu: take one of the two")


def _uploaded(
    connection: "Connection",
    settings: "RunConfig",
    tracking_uri: str,
    image: str,
    placement: "Placement",
    view: "RunView",
) -> "tuple[ClusterClient, Version, str]":
    """Return a client, and the pipeline's version and the experiment's id on the cluster."""
    from pipelines.cluster.client import ClusterClient
    from pipelines.cluster.package import compiled
    from pipelines.cluster.submission import check_host, experiment, upload

    client = ClusterClient(connection)
    check_host(client)
    shards = settings.build_shards
    with compiled(tracking_uri=tracking_uri, build_shards=shards, image=image, placement=placement) as package:
        version = upload(client, package, view.note)
    return client, version, experiment(client, settings.experiment)


def _run_name(settings: "RunConfig") -> str:
    source = Path(settings.source).name
    return f"{source} {settings.way}-way {settings.shot}-shot: {' + '.join(dict.fromkeys(settings.learners))}"
