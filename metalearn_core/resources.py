"""How many processor cores and how much memory there are to work with, a container's limits included."""

import math
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return the number of cores that this process may use: as many as the machine, its affinity and its quota allow.

    Args:
        cgroup: where the control group of this process is mounted; of both versions.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = [*_numbers(cgroup / "cpu.max"), 0.0, 0.0][:2]
    if not period:
        quota, period = ((_numbers(cgroup / "cpu" / f"cpu.cfs_{name}_us") or [0.0])[0] for name in ("quota", "period"))
    if 0 < quota < math.inf and period > 0:
        cores = min(cores, max(1, math.ceil(quota / period)))
    return cores


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return the bytes of memory that can still be taken: of the machine's, and of what the container may have.

    Args:
        cgroup: where the control group of this process is mounted; of both versions.
    """
    available = psutil.virtual_memory().available
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _numbers(cgroup / limit_name), _numbers(cgroup / used_name)
        if limit and used and limit[0] < math.inf:
            available = min(available, max(0, int(limit[0] - used[0])))
    return int(available)


def _numbers(path: Path) -> list[float]:
    """Return the numbers in a file of a control group, `max` being infinite; none where there is no such file."""
    try:
        return [math.inf if text == "max" else float(text) for text in path.read_text().split()]
    except (OSError, ValueError):
        return []
