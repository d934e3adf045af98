"""Memory of a process that trains or evaluates: what is freed is kept, and the most that there was is measured."""

import ctypes
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1
_open_blocks: list[None] = []
_lock = threading.Lock()
_USUAL = 32 * 2**20
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed inside the block, and give it back at the end: taking pages anew is slow.

    Activations are tens of megabytes, which glibc maps and unmaps each time by default; training Prototypical networks
    is a third to a half faster without. Another C library is left as it is. Of blocks within one another the outermost
    counts.
    """
    try:
        library = ctypes.CDLL(None)
        set_option, give_back = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    with _lock:
        _open_blocks.append(None)
        set_option(_MMAP_THRESHOLD, 2**30)
        set_option(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        with _lock:
            _open_blocks.pop()
            if not _open_blocks:
                set_option(_MMAP_THRESHOLD, _USUAL)
                set_option(_TRIM_THRESHOLD, 2 * _USUAL)
                give_back(0)


class PeakMemory:
    """The largest memory of this process inside the block: what it starts with (libraries, data) counts too.

    On Linux the kernel's high-water mark is set back at the start, so that an earlier, larger block leaves no trace;
    where that is not possible (another system, a forbidding container) the mark is that of the whole process.

    Attributes:
        resident_bytes: the largest resident size.
        gpu_bytes: the most that torch had allocated on the current GPU; 0 without one.
    """

    resident_bytes: int = 0
    gpu_bytes: int = 0

    def __enter__(self) -> Self:
        self._gpu = _gpu()
        if self._gpu is not None:
            self._gpu.reset_peak_memory_stats()
        with suppress(OSError):
            _RESET.write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        self.resident_bytes = _high_water_mark()
        if self._gpu is not None:
            self.gpu_bytes = int(self._gpu.max_memory_allocated())


def _high_water_mark() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return 1024 * int(value.split()[0])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _gpu() -> Any:
    """Return torch's module for GPUs, where there is one."""
    import torch

    return torch.cuda if torch.cuda.is_available() else None
