"""A step of a pipeline does not outlive the process that started the run."""

import os
import threading
import time

import psutil

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
