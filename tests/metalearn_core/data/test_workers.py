import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from metalearn_core.data.workers import map_in_order
from metalearn_core.errors import MetalearnError


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    assert list(map_in_order(abs, range(-50, 0), workers)) == list(range(50, 0, -1))


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_in_order(int, ["1", "x", "2"], 2))


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(MetalearnError, match="worker ended unexpectedly"):
        list(map_in_order(os._exit, [9, 9], 2))


def test_workers_end_when_the_caller_stops_early() -> None:
    results = map_in_order(abs, iter(range(1000)), 2)
    next(results)
    children = psutil.Process().children()
    results.close()
    assert not any(child.is_running() for child in children if "serve" in " ".join(_command(child)))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import time, psutil, sys\n"
        "from metalearn_core.data.workers import map_in_order\n"
        "results = map_in_order(time.sleep, [0.01] * 100000, 2)\n"
        "next(results)\n"
        "print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "for _ in results: pass\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
