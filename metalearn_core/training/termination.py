"""SIGTERM as a flag, which training looks at between pieces of work: a preempted node writes a checkpoint first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from metalearn_core.errors import MetalearnError

STOPPED_BY_SIGTERM = 143


class TrainingStoppedError(MetalearnError):
    """The process was asked to end; the checkpoint has all that was done."""

    exit_status = STOPPED_BY_SIGTERM


class StopRequested(Exception):  # noqa: N818
    """Leaves validation, a step or the loop when SIGTERM has come."""


@contextlib.contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets instead of ending the process; in another thread than the main one, never."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def set_flag(_number: int, _frame: FrameType | None) -> None:
        flag.set()

    before = signal.signal(signal.SIGTERM, set_flag)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
