"""The container engine of this machine, Docker or podman: whether it answers, what it has, and what killed runs left.

Docker's SDK speaks to both, at the address that DOCKER_HOST gives, or at the usual sockets.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.lifetime import owner_runs
from metalearn_core.storage.files import CACHE_VARIABLE
from metalearn_core.tracking_server import sqlite_path
from pipelines.workdir import Workdir

HOST_VARIABLE = "DOCKER_HOST"
RUN_LABEL = "metalearn.run"
OWNER_LABEL = "metalearn.owner"
_SOCKETS = ("/var/run/docker.sock", "{XDG_RUNTIME_DIR}/podman/podman.sock", "/run/podman/podman.sock")
_PATIENCE_S = 10  # for an engine to answer at all
_WORK_S = 120  # to list what it has, on a busy machine
_REASON_LENGTH = 300


class Engine(BaseModel):
    """A container engine that answers.

    Attributes:
        address: as DOCKER_HOST has it.
        rootless: containers see the caller's files under other user ids.
        podman: it is podman.
        labels_files: it keeps containers from files without the label of SELinux.
    """

    model_config = ConfigDict(frozen=True)

    address: str
    rootless: bool
    podman: bool
    labels_files: bool


class Containers(BaseModel):
    """What the containers of a run have in common.

    Attributes:
        engine: that runs them.
        image: its id.
        image_name: as it was asked for.
        writable: the folders that they write to, at the same place as here.
        readable: the files and folders that they only read.
        cache: a folder for copies that can be made again, below a writable one.
        gpus: how many each has.
    """

    model_config = ConfigDict(frozen=True)

    engine: Engine
    image: str
    image_name: str
    writable: tuple[Path, ...]
    readable: tuple[Path, ...]
    cache: Path
    gpus: int = 0


def containers_for(
    engine_name: str, image: str | None, gpus: int, arguments: dict[str, Any], workdir: Workdir
) -> Containers | None:
    """Return the containers for a run, and remove what killed runs left; None where the steps are processes here.

    Args:
        engine_name: `container`, or `local`.
        image: its name; None: the one that `make image` builds from this code.
        gpus: how many each container has; with some, a training that finds none fails.
        arguments: the pipeline's inputs; `device` is set.
        workdir: of the run.

    Raises:
        UsageError: an option that does not go with the others, or more GPUs than there are.
        MetalearnError: no engine answers, or it has no such image.
    """
    if engine_name != "container":
        if gpus:
            raise UsageError("--gpus: is for containers: give --engine container, or --device cuda for a step here")
        return None
    from components.image import IMAGE, pinned

    image_name = pinned(image) if image else IMAGE
    if gpus:
        _check_gpus(gpus, arguments["device"])
        arguments["device"] = "cuda"
    engine = find_engine()
    image_id = find_image(engine, image_name)
    remove_leftovers(engine)
    cache = Path(os.environ.get(CACHE_VARIABLE) or workdir.storage(engine_name) / "cache").expanduser().resolve()
    database = sqlite_path(workdir.tracking_uri)
    written = {workdir.path, cache, *([database.parent.resolve()] if database else [])}
    for folder in written:
        folder.mkdir(parents=True, exist_ok=True)
    read = (Path(arguments[name]) for name in ("source", "split_file", "split_from"))
    return Containers(
        engine=engine,
        image=image_id,
        image_name=image_name,
        writable=tuple(sorted(written)),
        readable=tuple(path for path in read if path.is_absolute()),  # no address, and no source that is built in
        cache=cache,
        gpus=gpus,
    )


def find_engine() -> Engine:
    """Return the container engine of this machine.

    Raises:
        MetalearnError: none answers.
    """
    address = _address()
    with _client(address) as client:
        security = " ".join(client.info().get("SecurityOptions") or [])
        components = client.version().get("Components") or []
    return Engine(
        address=address,
        rootless="rootless" in security,
        podman=any("podman" in component.get("Name", "").lower() for component in components),
        labels_files="selinux" in security,
    )


def _address() -> str:
    if told := os.environ.get(HOST_VARIABLE):
        return told
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/run")
    sockets = [Path(socket.format(XDG_RUNTIME_DIR=runtime)) for socket in _SOCKETS]
    for socket in sockets:
        if socket.is_socket() and os.access(socket, os.W_OK):
            return f"unix://{socket}"
    raise MetalearnError(
        f"--engine container: no container engine found at {', '.join(str(socket) for socket in sockets)}: "
        f"start Docker, or podman's socket, or give its address in {HOST_VARIABLE}"
    )


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Yield a client of the engine at an address; what goes wrong with it inside the block is told in one line."""
    import docker
    from requests import RequestException

    client = None
    try:
        client = docker.DockerClient(base_url=address, version="auto", timeout=_PATIENCE_S)
        client.api.timeout = _WORK_S
        yield client
    except docker.errors.APIError as error:
        raise MetalearnError(f"container engine {address}: {reason(error)}") from None
    except (docker.errors.DockerException, RequestException, OSError) as error:
        raise MetalearnError(f"container engine {address} does not answer ({HOST_VARIABLE}): {reason(error)}") from None
    finally:
        if client is not None:
            client.close()


def reason(error: Exception) -> str:
    """Return what an engine said, or why it said nothing, in one line."""
    text = " ".join(str(getattr(error, "explanation", None) or error).split())
    for pattern, plain in (
        (r"FileNotFoundError|No such file", "there is no such socket; is it running?"),
        (r"PermissionError|Permission denied", "no permission to use its socket"),
        (r"Connection ?refused", "connection refused; is it running?"),
        (r"timed out|Timeout", "no answer in time; is the address right?"),
        (r"Name or service not known|NameResolution|getaddrinfo", "its host name is not known"),
        (r"Invalid bind address|Invalid (?:url|URL)|not supported", "expected an address as unix:///run/docker.sock"),
    ):
        if re.search(pattern, text) and not hasattr(error, "explanation"):
            return plain
    return text[:_REASON_LENGTH]


def find_image(engine: Engine, name: str) -> str:
    """Return the id of an image at the engine, pulled where its name has a registry and it is not there.

    Every step runs by the id, so that a run keeps its image, whatever the name comes to mean meanwhile.

    Raises:
        MetalearnError: there is no such image.
    """
    import docker

    with _client(engine.address) as client:
        registry, slash, _ = name.partition("/")
        remote = slash and set(".:") & set(registry)
        for candidate in (name, *([] if remote else [f"localhost/{name}"])):  # where podman puts what it builds
            with suppress(docker.errors.ImageNotFound):
                return str(client.images.get(candidate).id)
        if not remote:
            raise MetalearnError(
                f"image {name} is not at the container engine: `make image` builds it from this code, and --image or "
                "METALEARN_IMAGE names another"
            )
        client.api.timeout = None  # a pull takes as long as it takes
        try:
            return str(client.images.pull(name).id)
        except docker.errors.APIError as error:
            raise MetalearnError(f"image {name} cannot be pulled: {reason(error)}") from None


def _check_gpus(wanted: int, device: str) -> None:
    if device == "cpu":
        raise UsageError(f"--gpus {wanted} and --device cpu: take one of the two")
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if wanted > there:
        raise UsageError(f"--gpus {wanted}: this machine has {there}")


def remove_containers(address: str, run_id: str) -> None:
    """Stop and remove the containers of a run, as far as the engine lets us: the next run removes what is left."""
    with suppress(MetalearnError), _client(address) as client:
        for entry in listed_containers(client, f"{RUN_LABEL}={run_id}"):
            _remove(client, entry)


def remove_leftovers(engine: Engine) -> None:
    """Stop and remove the containers of runs whose process is gone."""
    with _client(engine.address) as client:
        for entry in listed_containers(client, OWNER_LABEL):
            if not owner_runs(entry["Labels"][OWNER_LABEL]):
                _remove(client, entry)


def listed_containers(client: Any, label: str) -> list[dict[str, Any]]:
    """Return what the engine tells of all containers with a label: `Id`, `State`, `Labels` and more.

    They are not looked at one by one: another run may remove one of them meanwhile.
    """
    return list(client.api.containers(all=True, filters={"label": label}))


def _remove(client: Any, entry: dict[str, Any]) -> None:
    import docker

    with suppress(docker.errors.APIError):  # another run removes it as well
        client.api.remove_container(entry["Id"], force=True)
