"""The machines that a training on several of them has: what a step asks for, and the TrainJob that asks for it."""

import os
from typing import Any

from pydantic import Field

from metalearn_core.data.manifest import Record
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.placement import cpu_cores

ACCOUNT_VARIABLE = "METALEARN_SERVICE_ACCOUNT"
"""Of a step: the account that its pod acts as, and its machines too."""
RUN_ANNOTATION = "metalearn.io/pipeline-run"
"""Of a TrainJob: the pipeline run that started it."""
_CONTAINER = "node"  # the trainer's container and job, in the runtimes that Kubeflow ships
_MANAGER = "metalearn.io/train-job"
_GRACE_S = 40  # torchrun, the container's first process, gives its own 30 seconds to write a checkpoint
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}  # in a Kubeflow profile; see kubeflow/kubeflow#3935


class JobRequest(Record):
    """The machines that a training is to have.

    Attributes:
        nodes: how many.
        image: that they run, the step's own.
        runtime: Kubeflow Trainer's, which tells `torchrun` of the other machines.
        user: that they run as, user and group.
        timeout: seconds after which Kubernetes ends the job.
        shm: size of each machine's /dev/shm; None: the container runtime's.
        scratch: size of each machine's /tmp on its disk; None: no limit but the disk's.
        image_pull_secrets: of the registry that has the image.
        resources: of each machine, as a container has them.
        env, tolerations, node_selector: of each machine, as a pod has them: what KFP hands on of its step.
    """

    nodes: int = Field(ge=1)
    image: str
    runtime: str
    user: int
    timeout: int
    shm: str | None = None
    scratch: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    resources: dict[str, dict[str, str]] = {}  # noqa: RUF012
    env: tuple[dict[str, Any], ...] = ()
    tolerations: tuple[dict[str, Any], ...] = ()
    node_selector: dict[str, str] = {}  # noqa: RUF012


def job_request(task_config: Any, **values: Any) -> JobRequest:
    """Return the request that a step's `dsl.TaskConfig` and its inputs make; what is not set in it stays unset."""
    names = ("env", "tolerations", "node_selector")
    passed = {name: getattr(task_config, name, None) for name in names}
    return JobRequest.model_validate({**{name: value for name, value in passed.items() if value}, **values})


def train_job(name: str, address: str, processes: int, request: JobRequest) -> Any:
    """Return the TrainJob, checked by the SDK's own models.

    It is made from them, not by `TrainerClient.train`, whose environment holds texts only: secrets are references here.

    Args:
        name: of the job.
        address: of the order that its machines carry out.
        processes: of each machine.
        request: the machines.
    """
    from kubeflow_trainer_api import models

    command = ["python", "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    labels = {"app.kubernetes.io/managed-by": "metalearn"}
    annotations = {RUN_ANNOTATION: pipeline_run_id()}
    return models.TrainerV1alpha1TrainJob.from_dict(
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "spec": {
                "runtimeRef": {"name": request.runtime},
                "activeDeadlineSeconds": request.timeout,
                "trainer": {
                    "image": request.image,
                    "numNodes": request.nodes,
                    "numProcPerNode": processes,
                    "command": [*command, "-m", "metalearn_core.steps.train_nodes", address],
                    "env": _environment(request, processes),
                    **({"resourcesPerNode": request.resources} if request.resources else {}),
                },
                "runtimePatches": [{"manager": _MANAGER, "trainingRuntimeSpec": _patch(request)}],
            },
        }
    )


def _environment(request: JobRequest, processes: int) -> list[dict[str, Any]]:
    """Return the machines' variables: this step's, but those that come from its own pod as they are here."""
    cores = request.resources.get("limits", {}).get("cpu")
    threads = max(1, int(cpu_cores(cores) // processes)) if cores else 1
    variables = {"OMP_NUM_THREADS": {"name": "OMP_NUM_THREADS", "value": str(threads)}}
    for variable in request.env:
        name = variable["name"]
        if "fieldRef" in variable.get("valueFrom", {}):
            variables[name] = {"name": name, "value": os.environ.get(name, "")}
        else:
            variables[name] = dict(variable)
    return list(variables.values())


def _patch(request: JobRequest) -> dict[str, Any]:
    """Return what the machines' pods have beside what the runtime gives them."""
    scratch = {"sizeLimit": request.scratch} if request.scratch else {}
    volumes: dict[str, tuple[str, dict[str, str]]] = {"metalearn-scratch": ("/tmp", scratch)}
    if request.shm:
        volumes["metalearn-shm"] = ("/dev/shm", {"medium": "Memory", "sizeLimit": request.shm})
    container = {
        "name": _CONTAINER,
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
        "securityContext": {
            "runAsUser": request.user,
            "runAsGroup": request.user,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    chosen = {
        "imagePullSecrets": [{"name": name} for name in request.image_pull_secrets],
        "serviceAccountName": os.environ.get(ACCOUNT_VARIABLE),
        "nodeSelector": request.node_selector,
        "tolerations": list(request.tolerations),
    }
    pod = {
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": settings} for name, (_, settings) in volumes.items()],
        "terminationGracePeriodSeconds": _GRACE_S,
        **{name: value for name, value in chosen.items() if value},
    }
    template = {"metadata": {"labels": _NO_SIDECAR}, "spec": pod}
    job = {"name": _CONTAINER, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
