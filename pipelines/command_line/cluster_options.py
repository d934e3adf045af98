"""Options of the verbs that send the pipeline to a cluster: what each of its steps gets there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.cluster.placement import Placement

ClusterConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML whose `cluster:` says what the steps get (docs/cluster.md).", dir_okay=False),
]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", help="Machines that train one learner together.", show_default="1")
]
GpusOption = Annotated[int | None, typer.Option("--gpus", help="GPUs of each machine that trains.", show_default="0")]
GpuTypeOption = Annotated[
    str | None, typer.Option("--gpu-type", help="The cluster's name for them.", show_default="nvidia.com/gpu")
]
TrainCpuOption = Annotated[
    str | None, typer.Option("--train-cpu", help="Cores of each machine that trains.", show_default="4")
]
TrainMemoryOption = Annotated[
    str | None, typer.Option("--train-memory", help="Memory of each machine that trains.", show_default="16Gi")
]
NodeSelectorOption = Annotated[
    list[str] | None,
    typer.Option("--node-selector", help="Label of the nodes to train on, as pool=gpu; repeatable."),
]
TolerationOption = Annotated[
    list[str] | None,
    typer.Option("--toleration", help="Taint of these nodes, as nvidia.com/gpu=present:NoSchedule; repeatable."),
]
TrainTimeoutOption = Annotated[
    str | None, typer.Option("--train-timeout", help="After which a training step is ended, as 12h.", show_default="1d")
]
TrainRetriesOption = Annotated[
    int | None,
    typer.Option("--train-retries", help="How often a failed training is tried again.", show_default="3"),
]
SecretEnvOption = Annotated[
    list[str] | None,
    typer.Option("--secret-env", help="A variable of every step from a secret, as NAME=secret/key; repeatable."),
]
ConfigMapEnvOption = Annotated[
    list[str] | None,
    typer.Option("--config-map-env", help="Likewise from a config map, as NAME=map/key; repeatable."),
]
ServiceAccountOption = Annotated[
    str | None,
    typer.Option("--service-account", help="That the run's pods act as; given with the run.", show_default="KFP's"),
]


def placement_of(
    section: Any,
    *,
    nodes: int | None = None,
    gpus: int | None = None,
    gpu_type: str | None = None,
    train_cpu: str | None = None,
    train_memory: str | None = None,
    node_selector: list[str] | None = None,
    toleration: list[str] | None = None,
    train_timeout: str | None = None,
    train_retries: int | None = None,
    secret_env: list[str] | None = None,
    config_map_env: list[str] | None = None,
    service_account: str | None = None,
) -> "Placement":
    """Return what the steps get, from the `cluster:` section of a file (None: there is none) and these options.

    Raises:
        UsageError: a value that it cannot have.
    """
    from pipelines.cluster.placement import read_placement
    from pipelines.command_line.options import given

    options: dict[str, Any] = {
        "nodes": nodes,
        "service_account": service_account,
        "train.gpus": gpus,
        "train.gpu_type": gpu_type,
        "train.cpu": train_cpu,
        "train.memory": train_memory,
        "train.timeout": train_timeout,
        "train.retries": train_retries,
    }
    return read_placement(
        section,
        given(**options),
        tolerations=toleration or [],
        node_selector=node_selector or [],
        secret_env=secret_env or [],
        config_map_env=config_map_env or [],
    )
