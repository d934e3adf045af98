"""A step of a pipeline does not outlive the process that started the run.

METALEARN_OWNER names that process: by its id and start, or, for a step in a container, where ids mean other processes,
by a file in a shared folder that it holds locked. The kernel lifts the lock when the process ends, however it ends.
"""

import fcntl
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from metalearn_core.storage import text_digest

OWNER_VARIABLE = "METALEARN_OWNER"
HOST_VARIABLE = "METALEARN_HOST"
_FILE = "file:"
_PERIOD_S = 0.5
_KILLED = 137


def owner_value() -> str:
    """Return what METALEARN_OWNER is set to for the processes that belong to this one: its id and its start."""
    process = psutil.Process()
    return f"{process.pid}:{process.create_time()}"


def hold(path: Path) -> str:
    """Lock a file as long as this process lives; return what METALEARN_OWNER is set to for who belongs to it.

    Args:
        path: of the file, which is made; where the others see it under the same name.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # it stays open: its end is the end of the lock
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return f"{_FILE}{path}"


def end_with_owner() -> None:
    """End this process soon after the one that METALEARN_OWNER names is gone, however that one ended.

    A signal cannot be relied on: the owner may be killed, and it is no parent of a step that KFP started.
    Without the variable, as on a cluster, nothing is watched.
    """
    value = os.environ.get(OWNER_VARIABLE)
    if not value:
        return
    if value.startswith(_FILE):
        # A lock that is free at once tells nothing: where containers run in a virtual machine, locks may not be shared.
        if owner_runs(value):
            threading.Thread(target=_wait_for_lock, args=(value.removeprefix(_FILE),), daemon=True).start()
    else:
        pid, started = value.split(":")
        threading.Thread(target=_watch, args=(int(pid), float(started)), daemon=True).start()


def owner_runs(value: str) -> bool:
    """Return whether the process that a value of METALEARN_OWNER names still runs.

    It is believed to where that cannot be told: the value names no process, or a file that is not here, or a process by
    its id, and this one is in a container.
    """
    if value.startswith(_FILE):
        try:
            return not _lock(value.removeprefix(_FILE), fcntl.LOCK_NB)
        except OSError:
            return True
    if os.environ.get(OWNER_VARIABLE, "").startswith(_FILE):
        return True
    try:
        pid, started = value.split(":")
        return _runs(int(pid), float(started))
    except ValueError:
        return True


def host_value() -> str:
    """Return a name for the machine on which a process id means the same process: it survives a restart.

    Beside the host's name, which many machines share, it depends on the machine's own id and the container, if any;
    but a container that belongs to a process of the host has that host's name, from METALEARN_HOST.
    """
    if told := os.environ.get(HOST_VARIABLE):
        return told
    identity = [socket.gethostname()]
    with suppress(OSError):
        identity.append(Path("/etc/machine-id").read_text().strip())
    with suppress(OSError):
        identity.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{identity[0]} {text_digest(identity)[:8]}"


def _lock(path: str, flags: int = 0) -> bool:
    """Return whether a file's lock could be had, for a moment, beside others that ask for it in the same way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | flags)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _wait_for_lock(path: str) -> None:
    with suppress(OSError):  # the file is gone: nothing tells of the owner any more
        if _lock(path):
            os._exit(_KILLED)


def _watch(pid: int, started: float) -> None:
    while _runs(pid, started):
        time.sleep(_PERIOD_S)
    os._exit(_KILLED)


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
