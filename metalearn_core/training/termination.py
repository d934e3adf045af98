"""SIGTERM as a flag that training looks at, and as an end to a computation that can be done again."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from metalearn_core.errors import MetalearnError

STOPPED_BY_SIGTERM = 143
_POLL_S = 0.05


class TrainingStoppedError(MetalearnError):
    """The process was asked to end; the checkpoint has all that was done."""

    exit_status = STOPPED_BY_SIGTERM


class StopRequested(BaseException):
    """Leaves validation, a step or the loop when SIGTERM has come; like Ctrl-C, nothing takes it for an error."""


class SigtermFlag:
    """Whether SIGTERM has come. No lock is taken: a signal may come while it is held, and wait for it for ever."""

    def __init__(self) -> None:
        self._set = self._raises = False

    def is_set(self) -> bool:
        """Return whether it has come."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it comes; return whether it has come."""
        end = time.monotonic() + seconds
        while not self._set and (left := end - time.monotonic()) > 0:
            time.sleep(min(_POLL_S, left))
        return self._set

    @contextlib.contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Leave the block with StopRequested when SIGTERM comes, or has come.

        It is for arithmetic on the main thread, which is left between two operations: locks would stay held. On another
        thread nothing is left, and nothing raised.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._raises = True
        try:
            if self._set:
                raise StopRequested
            yield
        finally:
            self._raises = False

    def heed(self) -> None:
        """Do what SIGTERM's arrival asks for, on the main thread."""
        self._set = True
        if self._raises:
            self._raises = False  # a second one does not disturb the way out
            raise StopRequested


@contextlib.contextmanager
def sigterm_flag() -> Iterator[SigtermFlag]:
    """Yield a flag that SIGTERM sets instead of ending the process; in another thread than the main one, never."""
    flag = SigtermFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    before = signal.signal(signal.SIGTERM, lambda *_: flag.heed())
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
