"""SIGTERM as a flag that training looks at, and as an end to a computation that can be done again."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

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

        It is for arithmetic on the main thread, which is left between two operations, and for waiting for another
        thread's: locks would stay held. On another thread nothing is left, and nothing raised.
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


def end_process(status: int) -> NoReturn:
    """End the process, and do not wait for threads that compute what nobody wants any more: they may take minutes."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


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
