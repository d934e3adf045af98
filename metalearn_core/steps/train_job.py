"""Train one learner on several machines of a cluster: a TrainJob of Kubeflow Trainer, asked for, awaited and read.

The only module that knows the `kubeflow` SDK.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.steps.placement import cpu_cores
from metalearn_core.steps.requests import TrainingOrder
from metalearn_core.steps.train_nodes import leave_order, reason_left, take_result
from metalearn_core.storage.place import Place
from metalearn_core.training.termination import sigterm_flag

_CONTAINER = "node"  # the trainer's container and job, in the runtimes that Kubeflow ships
_MANAGER = "metalearn.io/train-job"
_POLL_S = 5.0
_PATIENCE_S = 600  # without an answer
_LOG_LINES = 3
_GONE_AFTER_S = 60
_POD_LABEL = "jobset.sigs.k8s.io/jobset-name"
_UNDER_WAY = ("Created", "Running")
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_REASONS: Mapping[int, str] = {
    _UNAUTHORIZED: "TrainJob: Kubernetes does not know this step's service account (401)",
    _FORBIDDEN: (
        "TrainJob: this step's service account may not use trainjobs.trainer.kubeflow.org here (403): give it the role "
        "that docs/cluster.md names"
    ),
    _NOT_FOUND: (
        "TrainJob: this cluster has no trainjobs.trainer.kubeflow.org, or no such runtime (404): install Kubeflow "
        "Trainer and its runtimes"
    ),
    409: "TrainJob: another run has just started the same training (409): wait for it, then start again",
}


class JobRequest(Record):
    """The machines that a training is to have.

    Attributes:
        nodes: how many.
        image: that they run, the step's own.
        runtime: Kubeflow Trainer's, which tells `torchrun` of the other machines.
        user: that they run as, user and group.
        timeout: seconds after which Kubernetes ends the job.
        shm: size of each machine's /dev/shm; None: the container runtime's.
        resources, env, tolerations, node_selector: of each machine, as a pod has them: what KFP hands on of its step.
    """

    nodes: int = Field(ge=1)
    image: str
    runtime: str
    user: int
    timeout: int
    shm: str | None = None
    resources: dict[str, dict[str, str]] = {}  # noqa: RUF012
    env: tuple[dict[str, Any], ...] = ()
    tolerations: tuple[dict[str, Any], ...] = ()
    node_selector: dict[str, str] = {}  # noqa: RUF012


def job_request(task_config: Any, **values: Any) -> JobRequest:
    """Return the request that a step's `dsl.TaskConfig` and its inputs make; what is not set in it stays unset."""
    names = ("resources", "env", "tolerations", "node_selector")
    passed = {name: getattr(task_config, name, None) for name in names}
    return JobRequest.model_validate({**{name: value for name, value in passed.items() if value}, **values})


def train_in_job(order: TrainingOrder, request: JobRequest, poll_s: float = _POLL_S) -> dict[str, Any]:
    """Train as ordered on several machines, and return the record of the training.

    A job that still runs for the same training, of an earlier attempt of this step, is awaited, not started twice. When
    this process ends before it, the job is removed: its checkpoints stay.

    Raises:
        MetalearnError: the SDK or Kubeflow Trainer is not there, the step may not use it, or the job failed.
    """
    jobs = _Jobs(f"metalearn-{PurePosixPath(order.checkpoints).name[:16]}")
    with _explained(), sigterm_flag() as stop:
        if jobs.status() not in _UNDER_WAY:
            jobs.remove()
            place = leave_order(order)
            jobs.start(train_job(jobs.name, place, order, request))
        emit("note", "meta_train", text=f"TrainJob {jobs.name}: {request.nodes} nodes")
        try:
            status = jobs.wait(stop, poll_s)
        except BaseException:
            with suppress(Exception):
                jobs.remove()
            raise
    if status != "Complete":
        reason = reason_left(order) or jobs.last_lines()
        raise MetalearnError(f"TrainJob {jobs.name} failed: {reason}: run it again, and it goes on from its checkpoint")
    record = take_result(order)
    with suppress(Exception):
        jobs.remove()
    return record


def train_job(name: str, place: Place, order: TrainingOrder, request: JobRequest) -> Any:
    """Return the TrainJob, checked by the SDK's own models.

    It is made from them, not by `TrainerClient.train`, whose environment holds texts only: secrets are references here.

    Args:
        name: of the job.
        place: where the order was left.
        order: of the training.
        request: the machines.
    """
    from kubeflow_trainer_api import models

    processes = order.resources.processes
    command = ["python", "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    labels = {"app.kubernetes.io/managed-by": "metalearn"}
    return models.TrainerV1alpha1TrainJob.from_dict(
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "runtimeRef": {"name": request.runtime},
                "activeDeadlineSeconds": request.timeout,
                "trainer": {
                    "image": request.image,
                    "numNodes": request.nodes,
                    "numProcPerNode": processes,
                    "command": [*command, "-m", "metalearn_core.steps.train_nodes", place.location],
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
    volumes: dict[str, tuple[str, dict[str, str]]] = {"metalearn-scratch": ("/tmp", {})}
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
    pod = {
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": settings} for name, (_, settings) in volumes.items()],
        **({"nodeSelector": request.node_selector} if request.node_selector else {}),
        **({"tolerations": list(request.tolerations)} if request.tolerations else {}),
    }
    job = {"name": _CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


class _Jobs:
    """One TrainJob by its name, in this pod's namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = _client()

    def status(self) -> str | None:
        """Return the job's status in the SDK's words, None where there is no such job."""
        try:
            return str(self.client.get_job(self.name).status)
        except Exception as error:
            if _http_status(error) == _NOT_FOUND and "TrainJob" in str(error):
                return None
            raise

    def start(self, job: Any) -> None:
        """Ask for the job."""
        from kubeflow.trainer.constants import constants

        backend = self.client.backend
        backend.custom_api.create_namespaced_custom_object(
            constants.GROUP, constants.VERSION, backend.namespace, constants.TRAINJOB_PLURAL, job.to_dict()
        )

    def wait(self, stop: Any, poll_s: float) -> str:
        """Return the job's last status; what does not answer is asked again for a while.

        Raises:
            MetalearnError: this process was asked to end.
        """
        answered = time.monotonic()
        while True:
            try:
                status = self.status()
                answered = time.monotonic()
            except Exception as error:
                if time.monotonic() - answered > _PATIENCE_S or _http_status(error) in (_UNAUTHORIZED, _FORBIDDEN):
                    raise
                status = "Running"
            if status not in _UNDER_WAY:
                if status is None:
                    raise MetalearnError(f"TrainJob {self.name} was removed by somebody else")
                return status
            if stop.wait(poll_s):
                raise MetalearnError("stopped: run it again, and it goes on from its checkpoint")

    def last_lines(self) -> str:
        """Return the last lines of the first machine's log, or where to look."""
        lines: list[str] = []
        with suppress(Exception):
            lines = [line for line in self.client.get_job_logs(self.name) if line.strip()]
        return (
            " / ".join(lines[-_LOG_LINES:]) or f"look at the logs of its pods: kubectl logs -l {_POD_LABEL}={self.name}"
        )

    def remove(self) -> None:
        """Remove the job, if it is there, and wait until it is gone: its name is used again."""
        try:
            self.client.delete_job(self.name)
        except Exception as error:
            if _http_status(error) != _NOT_FOUND:
                raise
            return
        for _ in range(_GONE_AFTER_S):
            if self.status() is None:
                return
            time.sleep(1)
        raise MetalearnError(f"TrainJob {self.name} does not go away: look at it with kubectl")


def _client() -> Any:
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise MetalearnError(
            "several nodes need the kubeflow SDK, which is not installed: make the image with the extra `trainer` "
            "(metalearn-pipelines[trainer])"
        ) from None
    from kubernetes.config.config_exception import ConfigException

    try:
        return TrainerClient()
    except ConfigException as error:
        raise MetalearnError(f"several nodes need a Kubernetes cluster: {' '.join(str(error).split())}") from None


def _http_status(error: BaseException) -> int | None:
    """Return the status that Kubernetes answered with; the SDK wraps its errors."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(cause, "status", None)
        if isinstance(status, int):
            return status
        cause = cause.__cause__
    return None


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Kubernetes and the SDK raise inside the block into a `MetalearnError` of one line."""
    try:
        yield
    except MetalearnError:
        raise
    except Exception as error:
        raise MetalearnError(_REASONS.get(_http_status(error) or 0, f"TrainJob: {_innermost(error)}")) from None


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
