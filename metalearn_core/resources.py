"""How many cores and how much memory there are, a container's limits included, and how many processes share them."""

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

    Files that the kernel keeps in memory until it is wanted for something else take none.

    Args:
        cgroup: where the control group of this process is mounted; of both versions.
    """
    available = psutil.virtual_memory().available
    for folder, limit_name, used_name, total in (
        (cgroup, "memory.max", "memory.current", ""),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = _numbers(folder / limit_name), _numbers(folder / used_name)
        if limit and used and limit[0] < math.inf:
            taken = used[0] - _file_pages(folder / "memory.stat", total)
            available = min(available, max(0, int(limit[0] - taken)))
    return int(available)


def processes_here() -> int:
    """Return how many processes torchrun runs on this machine, this one among them; 1 where it did not start this."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _file_pages(path: Path, total: str) -> int:
    """Return the bytes of files that a control group has in memory, by its statistics; 0 where it has none."""
    try:
        rows = dict(line.split() for line in path.read_text().splitlines())
        return sum(int(rows.get(f"{total}{kind}_file", "0")) for kind in ("active", "inactive"))
    except (OSError, ValueError):
        return 0


def _numbers(path: Path) -> list[float]:
    """Return the numbers in a file of a control group, `max` being infinite; none where there is no such file."""
    try:
        return [math.inf if text == "max" else float(text) for text in path.read_text().split()]
    except (OSError, ValueError):
        return []
