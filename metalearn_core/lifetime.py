"""A step of a pipeline does not outlive the process that started the run."""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from metalearn_core.storage import text_digest

OWNER_VARIABLE = "METALEARN_OWNER"
_PERIOD_S = 0.5
_KILLED = 137


def owner_value() -> str:
    """Return what METALEARN_OWNER is set to for the processes that belong to this one: its id and its start."""
    process = psutil.Process()
    return f"{process.pid}:{process.create_time()}"


def end_with_owner() -> None:
    """End this process soon after the one that METALEARN_OWNER names is gone, however that one ended.

    A signal cannot be relied on: the owner may be killed, and it is no parent of a step that KFP started.
    Without the variable, as on a cluster, nothing is watched.
    """
    value = os.environ.get(OWNER_VARIABLE)
    if value:
        pid, started = value.split(":")
        threading.Thread(target=_watch, args=(int(pid), float(started)), daemon=True).start()


def owner_runs(value: str) -> bool:
    """Return whether the process that a value of METALEARN_OWNER on this machine names still runs.

    A value that names none is believed to: what cannot be told is left alone.
    """
    try:
        pid, started = value.split(":")
        return _runs(int(pid), float(started))
    except ValueError:
        return True


def host_value() -> str:
    """Return a name for the machine on which a process id means the same process: it survives a restart.

    Beside the host's name, which many machines share, it depends on the machine's own id and the container, if any.
    """
    identity = [socket.gethostname()]
    with suppress(OSError):
        identity.append(Path("/etc/machine-id").read_text().strip())
    with suppress(OSError):
        identity.append(str(Path("/proc/self/ns/pid").readlink()))
    return f"{identity[0]} {text_digest(identity)[:8]}"


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
