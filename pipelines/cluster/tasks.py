"""Give a task of the pipeline what a `Placement` says: the one place where Kubernetes' settings are made."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from metalearn_core.steps.job_request import ACCOUNT_VARIABLE
from pipelines.cluster.placement import IMAGE_USER, Kind, Placement, Reference, StepPlacement, TrainPlacement

_SHM = "/dev/shm"
_SCRATCH = "/tmp"


def place(task: dsl.PipelineTask, placement: Placement, kind: Kind, chosen: Mapping[str, Any], fixed: set[str]) -> None:
    """Place one task.

    Args:
        task: of the pipeline.
        placement: what all tasks get.
        kind: of the task.
        chosen: the pipeline's inputs that choose the pod of a training, by the names of `Placement.arguments`.
        fixed: variables that the task has already.
    """
    step = getattr(placement, kind)
    if isinstance(step, TrainPlacement):
        _place_training(task, chosen)
    else:
        _place_step(task, step)
    _surround(task, step)
    _fill_environment(task, placement, fixed)
    if kind == "train" and placement.nodes > 1:
        kubernetes.use_field_path_as_env(task, ACCOUNT_VARIABLE, "spec.serviceAccountName")  # the nodes act as it too
    kubernetes.set_image_pull_policy(task, placement.image_pull_policy)
    if placement.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(placement.image_pull_secrets))
    kubernetes.set_security_context(task, run_as_user=IMAGE_USER, run_as_group=IMAGE_USER, run_as_non_root=True)


def _place_step(task: dsl.PipelineTask, step: StepPlacement) -> None:
    task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu_limit)
    task.set_memory_request(step.memory).set_memory_limit(step.memory_limit)
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


def _place_training(task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> None:
    """Take the pod from the pipeline's inputs, which a person may change for each run.

    KFP passes an input into a loop only where a task in it has registered it, and its setters of resources do not.
    """
    task.register_pipeline_channels(list(chosen.values()))
    task.set_cpu_request(chosen["train_cpu"]).set_cpu_limit(chosen["train_cpu"])
    task.set_memory_request(chosen["train_memory"]).set_memory_limit(chosen["train_memory"])
    task.set_accelerator_type(chosen["train_gpu_type"]).set_accelerator_limit(chosen["train_gpus"])
    kubernetes.add_node_selector_json(task, chosen["train_node_selector"])
    kubernetes.add_toleration_json(task, chosen["train_tolerations"])


def _surround(task: dsl.PipelineTask, step: StepPlacement | TrainPlacement) -> None:
    """Set what both kinds have: time, retries, and places to write to where the image is read-only."""
    kubernetes.set_timeout(task, step.timeout)
    task.set_retry(step.retries, f"{step.backoff}s", 2.0, "3600s")
    kubernetes.empty_dir_mount(task, "metalearn-scratch", _SCRATCH, size_limit=step.scratch)
    if step.shm:
        kubernetes.empty_dir_mount(task, "metalearn-shm", _SHM, medium="Memory", size_limit=step.shm)


def _fill_environment(task: dsl.PipelineTask, placement: Placement, fixed: set[str]) -> None:
    for use, references in (
        (kubernetes.use_secret_as_env, placement.secrets()),
        (kubernetes.use_config_map_as_env, placement.config_maps()),
    ):
        for (name, optional), entries in _by_object(references).items():
            variables = {entry: variable for entry, variable in entries.items() if variable not in fixed}
            if variables:
                use(task, name, variables, optional=optional)


def _by_object(references: Mapping[str, Reference]) -> dict[tuple[str, bool], dict[str, str]]:
    """Return, for each secret or config map, the variable of each of its entries."""
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for variable, reference in references.items():
        found.setdefault((reference.name, reference.optional), {})[reference.key] = variable
    return found
