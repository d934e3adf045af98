"""Keep freed memory in the process while it trains or evaluates: taking pages anew costs more than arithmetic."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1
_open_blocks: list[None] = []
_lock = threading.Lock()
_USUAL = 32 * 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed inside the block, and give it back at the end.

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
