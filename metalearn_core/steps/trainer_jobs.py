"""TrainJobs of Kubeflow Trainer by their names: found, started, awaited and removed. Only this module calls the SDK."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from metalearn_core.errors import MetalearnError

_PATIENCE_S = 600  # without an answer
_TIMEOUT_S = (10, 60)  # to connect, and to answer
_LOG_LINES = 3
_GONE_AFTER_S = 60
_POD_LABEL = "jobset.sigs.k8s.io/jobset-name"
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT = 401, 403, 404, 409
_REASONS: Mapping[int, str] = {
    _UNAUTHORIZED: "TrainJob: Kubernetes does not know this step's service account (401)",
    _NOT_FOUND: (
        "TrainJob: this cluster has no trainjobs.trainer.kubeflow.org, or no such runtime (404): install Kubeflow "
        "Trainer and its runtimes"
    ),
}
_NO_ROLE = (
    "TrainJob: this step's service account may not use trainjobs.trainer.kubeflow.org here (403): give it the role "
    "that docs/cluster.md names"
)
COMPLETE, FAILED, GONE, UNDER_WAY = "Complete", "Failed", "gone", "under way"


@dataclass(frozen=True)
class Job:
    """A TrainJob as it was at one moment.

    Attributes:
        uid: Kubernetes' own, which a later job of the same name has not.
        status: COMPLETE, FAILED or UNDER_WAY.
        annotations: by name.
    """

    uid: str
    status: str
    annotations: Mapping[str, str] = field(default_factory=dict)


class Jobs:
    """The TrainJobs of one name in this pod's namespace: at most one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._client = _client()

    def find(self) -> Job | None:
        """Return the job; None where there is no such job."""
        try:
            return _job(self._call("get_namespaced_custom_object", self.name))
        except Exception as error:
            if _http_status(error) == _NOT_FOUND:
                return None
            raise

    def start(self, job: Any) -> Job | None:
        """Ask for a job, and return it; None where another one of this name was faster."""
        try:
            return _job(self._call("create_namespaced_custom_object", job.to_dict()))
        except Exception as error:
            if _http_status(error) == _CONFLICT:
                return None
            raise

    def wait(self, stop: Any, poll_s: float) -> str:
        """Return COMPLETE, FAILED, or GONE; what does not answer is asked again for a while.

        Raises:
            MetalearnError: this process was asked to end.
        """
        answered = time.monotonic()
        while True:
            try:
                job = self.find()
                answered = time.monotonic()
            except Exception as error:
                if time.monotonic() - answered > _PATIENCE_S or _http_status(error) in (_UNAUTHORIZED, _FORBIDDEN):
                    raise
            else:
                status = GONE if job is None else job.status
                if status != UNDER_WAY:
                    return status
            if stop.wait(poll_s):
                raise MetalearnError("stopped: run it again, and it goes on from its checkpoint")

    def last_lines(self) -> str:
        """Return the last lines of the first machine's log, or where to look."""
        lines: list[str] = []
        with suppress(Exception):
            lines = [line for line in self._client.get_job_logs(self.name) if line.strip()]
        return (
            " / ".join(lines[-_LOG_LINES:]) or f"look at the logs of its pods: kubectl logs -l {_POD_LABEL}={self.name}"
        )

    def remove(self, job: Job) -> None:
        """Remove this very job, if it is still there, and wait until it is gone: its name is used again."""
        try:
            self._call("delete_namespaced_custom_object", self.name, body={"preconditions": {"uid": job.uid}})
        except Exception as error:
            if _http_status(error) not in (_NOT_FOUND, _CONFLICT):  # a conflict: the name is another job's by now
                raise
            return
        for _ in range(_GONE_AFTER_S):
            there = self.find()
            if there is None or there.uid != job.uid:
                return
            time.sleep(1)
        raise MetalearnError(f"TrainJob {self.name} does not go away: look at it with kubectl")

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        from kubeflow.trainer.constants import constants

        backend = self._client.backend
        call = getattr(backend.custom_api, method)
        kind = (constants.GROUP, constants.VERSION, backend.namespace, constants.TRAINJOB_PLURAL)
        return call(*kind, *arguments, _request_timeout=_TIMEOUT_S, **options)


def _job(content: Mapping[str, Any]) -> Job:
    metadata, status = content["metadata"], content.get("status") or {}
    ends = [entry["type"] for entry in status.get("conditions") or [] if entry["status"] == "True"]
    ended = next((kind for kind in ends if kind in (COMPLETE, FAILED)), UNDER_WAY)
    return Job(metadata["uid"], ended, metadata.get("annotations") or {})


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
def explained() -> Iterator[None]:
    """Turn what Kubernetes and the SDK raise inside the block into a `MetalearnError` of one line."""
    try:
        yield
    except MetalearnError:
        raise
    except Exception as error:
        status = _http_status(error)
        if status == _FORBIDDEN:
            raise MetalearnError(_refusal(error)) from None
        raise MetalearnError(_REASONS.get(status or 0, f"TrainJob: {_innermost(error)}")) from None


def _refusal(error: BaseException) -> str:
    """Return why Kubernetes forbids a job: a role is missing, or a quota or a webhook refuses it, in its own words."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "body", None):
        cause = cause.__cause__
    try:
        message = str(json.loads(getattr(cause, "body", None) or "{}").get("message", ""))
    except (ValueError, AttributeError):
        message = ""
    if not message or ("cannot" in message and "resource" in message):
        return _NO_ROLE
    return f"TrainJob: Kubernetes refuses it (403): {' '.join(message.split())[:300]}"


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
