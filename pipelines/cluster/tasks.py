"""Give a task of the pipeline what a `Placement` says: the one place where Kubernetes' settings are made."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from metalearn_core.events import EVENTS_VARIABLE, ON_STDERR
from metalearn_core.steps.job_request import ACCOUNT_VARIABLE
from pipelines.cluster.placement import IMAGE_USER, Kind, Placement, StepPlacement, TrainPlacement

_SHM = "/dev/shm"
_SCRATCH = "/tmp"
_RETRY_WINDOW = "365d"
"""Of all attempts together, with their waits for a node: Argo counts it from the start of the first, then retries no
more and ends what still runs (kubeflow/pipelines#13452, #14245). Its retries and its timeout are to bound a step."""


def place(
    task: dsl.PipelineTask,
    placement: Placement,
    kind: Kind,
    chosen: Mapping[str, Any],
    fixed: set[str],
    most_retries: int | None = None,
) -> None:
    """Place one task.

    Args:
        task: of the pipeline.
        placement: what all tasks get.
        kind: of the task.
        chosen: the pipeline's inputs that choose the pod of a training, by the names of `Placement.arguments`.
        fixed: variables that the task has already.
        most_retries: of this task, where its kind has more.
    """
    step = getattr(placement, kind)
    if isinstance(step, TrainPlacement):
        _choose_nodes(task, chosen)
        if placement.nodes == 1:
            _choose_resources(task, chosen)
        else:  # it waits for machines, which have what is chosen
            _set_resources(task, placement.small)
    else:
        _set_resources(task, step)
        _set_nodes(task, step)
    _surround(task, step, step.retries if most_retries is None else min(step.retries, most_retries))
    task.set_env_variable(EVENTS_VARIABLE, ON_STDERR)
    _fill_environment(task, placement, fixed)
    if kind == "train" and placement.nodes > 1:
        kubernetes.use_field_path_as_env(task, ACCOUNT_VARIABLE, "spec.serviceAccountName")  # the nodes act as it too
    kubernetes.set_image_pull_policy(task, placement.image_pull_policy)
    if placement.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(placement.image_pull_secrets))
    kubernetes.set_security_context(task, run_as_user=IMAGE_USER, run_as_group=IMAGE_USER, run_as_non_root=True)


def _set_resources(task: dsl.PipelineTask, step: StepPlacement) -> None:
    task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu_limit)
    task.set_memory_request(step.memory).set_memory_limit(step.memory_limit)


def _set_nodes(task: dsl.PipelineTask, step: StepPlacement) -> None:
    for key, value in step.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for entry in step.tolerations:
        kubernetes.add_toleration(
            task,
            key=entry.key or None,
            operator=entry.operator,
            value=entry.value or None,
            effect=entry.effect or None,
            toleration_seconds=entry.tolerationSeconds,
        )


def _choose_resources(task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> None:
    """Take them from the pipeline's inputs, which a person may change for each run."""
    task.set_cpu_request(chosen["train_cpu"]).set_cpu_limit(chosen["train_cpu"])
    task.set_memory_request(chosen["train_memory"]).set_memory_limit(chosen["train_memory"])
    task.set_accelerator_type(chosen["train_gpu_type"]).set_accelerator_limit(chosen["train_gpus"])


def _choose_nodes(task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> None:
    """Take them from the pipeline's inputs.

    KFP passes an input into a loop only where a task in it has registered it, and its setters of resources do not.
    """
    task.register_pipeline_channels(list(chosen.values()))
    kubernetes.add_node_selector_json(task, chosen["train_node_selector"])
    kubernetes.add_toleration_json(task, chosen["train_tolerations"])


def _surround(task: dsl.PipelineTask, step: StepPlacement | TrainPlacement, retries: int) -> None:
    """Set what both kinds have: time, retries, and places to write to where the image is read-only."""
    kubernetes.set_timeout(task, step.timeout)
    task.set_retry(retries, f"{step.backoff}s", 2.0, _RETRY_WINDOW)
    kubernetes.empty_dir_mount(task, "metalearn-scratch", _SCRATCH, size_limit=step.scratch)
    if step.shm:
        kubernetes.empty_dir_mount(task, "metalearn-shm", _SHM, medium="Memory", size_limit=step.shm)


def _fill_environment(task: dsl.PipelineTask, placement: Placement, fixed: set[str]) -> None:
    for use, references in (
        (kubernetes.use_secret_as_env, placement.secrets()),
        (kubernetes.use_config_map_as_env, placement.config_maps()),
    ):
        for variable, entry in references.items():
            if variable not in fixed:
                use(task, entry.name, {entry.key: variable}, optional=entry.optional)
