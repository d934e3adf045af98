"""Options of the verbs that send the pipeline to a cluster: what each of its steps gets there."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.command_line.shared_options import with_shared

if TYPE_CHECKING:
    from pipelines.cluster.placement import Placement

PlacementFor = Callable[..., "Placement"]
"""Makes the placement from the `cluster:` section of a file (None: there is none) and the options that were given."""


def _placement_for(
    nodes: Annotated[
        int | None, typer.Option("--nodes", help="Nodes that train one learner together.", show_default="1")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs of each node that trains.", show_default="0")] = None,
    gpu_type: Annotated[
        str | None,
        typer.Option("--gpu-type", help="The cluster's resource name of these GPUs.", show_default="nvidia.com/gpu"),
    ] = None,
    train_cpu: Annotated[
        str | None, typer.Option("--train-cpu", help="CPU cores of each node that trains.", show_default="4")
    ] = None,
    train_memory: Annotated[
        str | None, typer.Option("--train-memory", help="Memory of each node that trains.", show_default="16Gi")
    ] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option("--node-selector", help="Label of the nodes to train on, e.g. pool=gpu. Repeatable."),
    ] = None,
    toleration: Annotated[
        list[str] | None,
        typer.Option("--toleration", help="Taint to tolerate, e.g. spot:NoSchedule. Repeatable."),
    ] = None,
    train_timeout: Annotated[
        str | None,
        typer.Option("--train-timeout", help="Time limit of a training step, e.g. 12h.", show_default="1d"),
    ] = None,
    train_retries: Annotated[
        int | None,
        typer.Option("--train-retries", help="Retries of a failed training step.", show_default="3"),
    ] = None,
    parallelism: Annotated[
        int | None,
        typer.Option(
            "--parallelism", help="Learners that are trained, or parts decoded, at one time.", show_default="all"
        ),
    ] = None,
    secret_env: Annotated[
        list[str] | None,
        typer.Option("--secret-env", help="A variable for every step from a secret: NAME=secret/key. Repeatable."),
    ] = None,
    config_map_env: Annotated[
        list[str] | None,
        typer.Option("--config-map-env", help="A variable for every step from a config map: NAME=map/key. Repeatable."),
    ] = None,
) -> PlacementFor:
    """Return what makes the placement; a value that it cannot have is a `UsageError` then."""
    from pipelines.command_line.options import given

    options = {
        "nodes": nodes,
        "train.gpus": gpus,
        "train.gpu_type": gpu_type,
        "train.cpu": train_cpu,
        "train.memory": train_memory,
        "train.timeout": train_timeout,
        "train.retries": train_retries,
        "parallelism": parallelism,
    }

    def placement_for(section: Any, **more: Any) -> "Placement":
        from pipelines.cluster.placement import read_placement

        return read_placement(
            section,
            given(**options, **more),
            tolerations=toleration or [],
            node_selector=node_selector or [],
            secret_env=secret_env or [],
            config_map_env=config_map_env or [],
        )

    return placement_for


def takes_placement_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of the placement; it gets what makes one as its parameter `placement_for`."""
    return with_shared(verb, "placement_for", _placement_for)
