"""Every step in a container of one image, by KFP's DockerRunner, with the verdict on a container taken from its end."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metalearn_core.events import EVENTS_VARIABLE, emit
from metalearn_core.lifetime import HOST_VARIABLE, OWNER_VARIABLE, hold, host_value
from metalearn_core.resources import available_memory
from metalearn_core.storage.files import CACHE_VARIABLE
from metalearn_core.tracking_server import sqlite_path
from metalearn_core.version import IMAGE_VARIABLE
from pipelines.containers import OWNER_LABEL, RUN_LABEL, Containers, reason
from pipelines.workdir import TRACKING_VARIABLE

SCRATCH = "tmp"  # in a run's folder: what its containers see as /tmp
_HOME = "/tmp"
_PASSED = ("AWS_", "MLFLOW_", "OMP_", "GOMP_", "MKL_")
_PASSED_OURS = {f"METALEARN_{name}" for name in ("EVENTS", "PIPELINE_RUN_ID", "WEBHOOK_URL", "KFP_URL", "DEBUG")}
_PASSED_NAMES = {"requests_ca_bundle", "ssl_cert_file", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}
_NAMES_A_FILE = ("_FILE", "_BUNDLE", "_PATH")
_AWS = ".aws"  # in a home: profiles, keys, and the tokens of `aws sso login`
_TAIL = 4000
_LAST_LINES = 3
_KILLED, _NOT_STARTED = 137, 127


@contextmanager
def docker_runner(containers: Containers, run_id: str, folder: Path) -> Iterator[Any]:
    """Yield KFP's runner for the containers of a run; inside the block, KFP runs a container as `run_to_its_end` does.

    Args:
        containers: what they have in common.
        run_id: of the run, which they are labelled with.
        folder: the run's, below a writable one.
    """
    from kfp import local
    from kfp.local import docker_task_handler

    owner = hold(folder / "owner.lock")
    scratch = folder / SCRATCH
    scratch.mkdir()
    kfps_own = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_to_its_end
    try:
        yield local.DockerRunner(**_arguments(containers, run_id, owner, scratch))
    finally:
        docker_task_handler.run_docker_container = kfps_own


def _arguments(containers: Containers, run_id: str, owner: str, scratch: Path) -> dict[str, Any]:
    """Return the arguments of `containers.create` that are the same for every step."""
    from docker.types import DeviceRequest, Mount

    passed = _environment(os.environ)
    own = {
        OWNER_VARIABLE: owner,
        HOST_VARIABLE: host_value(),
        IMAGE_VARIABLE: containers.image_name,
        CACHE_VARIABLE: str(containers.cache),
        "HOME": _HOME,
    }
    database = sqlite_path(os.environ[TRACKING_VARIABLE])
    if database:  # its place may be relative to where this process is
        own[TRACKING_VARIABLE] = f"sqlite:///{database.resolve()}"
    files = {path for path in _named_files(passed) if not any(map(path.is_relative_to, containers.writable))}
    mounts = [Mount(str(path), str(path), type="bind") for path in containers.writable]
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in files.union(containers.readable)]
    mounts.append(Mount(_HOME, str(scratch), type="bind"))
    aws = Path.home() / _AWS
    if aws.is_dir():
        (scratch / _AWS).mkdir()  # where it is mounted: an engine would make it as another user
        mounts.append(Mount(f"{_HOME}/{_AWS}", str(aws.resolve()), type="bind", read_only=True))
    user, engine = f"{os.getuid()}:{os.getgid()}", containers.engine
    options: dict[str, Any] = {}
    if engine.rootless and engine.podman:
        options["userns_mode"] = "keep-id"
    elif engine.rootless:
        user = "0:0"  # the caller, as rootless Docker maps it
    if engine.labels_files:
        options["security_opt"] = ["label=disable"]  # a user's own files are not labelled anew
    if containers.gpus:
        options["device_requests"] = [DeviceRequest(count=containers.gpus, capabilities=[["gpu"]])]
    return {
        "environment": {**passed, **own},
        "labels": {RUN_LABEL: run_id, OWNER_LABEL: owner},
        "mounts": mounts,
        "network_mode": "host",  # a tracking server or object store on this machine answers at its usual address
        "read_only": True,
        "shm_size": available_memory() // 2,  # as much as the kernel gives to /dev/shm outside a container
        "user": user,
        **options,
    }


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of this process' environment the steps get: settings of tracking, S3, proxies and threads."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_PASSED) or name in _PASSED_OURS or name.lower() in _PASSED_NAMES
    }


def _named_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that variables name: credentials, certificates. Only what such variables hold is looked at."""
    for name, value in environment.items():
        if name.upper().endswith(_NAMES_A_FILE) and value.startswith("/"):
            with suppress(OSError):
                if Path(value).is_file():
                    yield Path(value)


def run_to_its_end(client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """Run a step's container, print what it prints, and return its exit status; it is removed only when that is known.

    This takes the place of KFP's own function, which lets the engine remove the container as soon as it ends: the
    status of one that ends at once is then lost, and taken for success (kubeflow/pipelines#13332). A step that has
    not said that it is done has failed, whatever the status; one that died without a word is reported here.
    """
    import docker
    from requests import RequestException

    name = command[command.index("--function_to_execute") + 1] if "--function_to_execute" in command else "step"
    events = Path(os.environ[EVENTS_VARIABLE])
    before, said, container = events.stat().st_size, "", None
    try:
        # The command takes the place of the image's entry point, as on Kubernetes.
        container = client.containers.create(
            image=image, entrypoint=command[:1], command=command[1:], volumes=volumes, **arguments
        )
        container.start()
        said = _print_log(container)
        status = container.wait(timeout=None)["StatusCode"]
        container.reload()
        killed_for_memory = bool(container.attrs["State"].get("OOMKilled"))
    except (docker.errors.DockerException, RequestException) as error:
        emit("error", name, text=f"its container was not run to its end: {reason(error)}")
        return _NOT_STARTED
    finally:
        if container is not None:
            with suppress(docker.errors.DockerException, RequestException):
                container.remove(force=True)
    kinds = _kinds(events, before, name)
    if status == 0 and "done" in kinds:
        return 0
    if "error" not in kinds:
        emit("error", name, text=f"its container {_end(status, killed_for_memory)}{_last_lines(said)}")
    return status or _NOT_STARTED


def _print_log(container: Any) -> str:
    """Print what a container prints, until it ends; return the last of it."""
    said = ""
    for chunk in container.logs(stream=True, follow=True):
        text = chunk.decode(errors="replace")
        print(text, end="")  # noqa: T201  (KFP indents what is printed)
        sys.stdout.flush()
        said = (said + text)[-_TAIL:]
    return said


def _kinds(events: Path, start: int, step: str) -> set[str]:
    """Return the kinds of the events that a step has reported since the file was `start` bytes long."""
    kinds = set()
    with events.open("rb") as file:
        file.seek(start)
        for line in file:
            with suppress(ValueError, KeyError):  # a line that a full disk cut off
                event = json.loads(line)
                if event["step"] == step:
                    kinds.add(event["kind"])
    return kinds


def _end(status: int, killed_for_memory: bool) -> str:
    if killed_for_memory:
        return "was killed: it took more memory than there was"
    if status == _KILLED:
        return "was killed"
    return f"ended with status {status}" if status else "ended without doing the step"


def _last_lines(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"; its last lines: {' / '.join(lines[-_LAST_LINES:])}" if lines else "; it printed nothing"
