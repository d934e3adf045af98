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
        int | None, typer.Option("--nodes", help="Machines that train one learner together.", show_default="1")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", help="GPUs of each machine that trains.", show_default="0")
    ] = None,
    gpu_type: Annotated[
        str | None, typer.Option("--gpu-type", help="The cluster's name for them.", show_default="nvidia.com/gpu")
    ] = None,
    train_cpu: Annotated[
        str | None, typer.Option("--train-cpu", help="Cores of each machine that trains.", show_default="4")
    ] = None,
    train_memory: Annotated[
        str | None, typer.Option("--train-memory", help="Memory of each machine that trains.", show_default="16Gi")
    ] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option("--node-selector", help="Label of the nodes to train on, as pool=gpu; repeatable."),
    ] = None,
    toleration: Annotated[
        list[str] | None,
        typer.Option("--toleration", help="Taint of these nodes, as nvidia.com/gpu=present:NoSchedule; repeatable."),
    ] = None,
    train_timeout: Annotated[
        str | None,
        typer.Option("--train-timeout", help="After which a training step is ended, as 12h.", show_default="1d"),
    ] = None,
    train_retries: Annotated[
        int | None,
        typer.Option("--train-retries", help="How often a failed training is tried again.", show_default="3"),
    ] = None,
    secret_env: Annotated[
        list[str] | None,
        typer.Option("--secret-env", help="A variable of every step from a secret, as NAME=secret/key; repeatable."),
    ] = None,
    config_map_env: Annotated[
        list[str] | None,
        typer.Option("--config-map-env", help="Likewise from a config map, as NAME=map/key; repeatable."),
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
