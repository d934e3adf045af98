"""How many processor cores there are to work with; imports next to nothing."""

import os


def available_cores() -> int:
    """Return the number of cores that this process may use, or where the system does not say, that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
