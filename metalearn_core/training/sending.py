"""Sends checkpoints to a bucket while training goes on, on a thread of its own."""

import threading
from collections.abc import Callable

from metalearn_core.errors import StorageError


class Sending:
    """Sends what it is given by name, one after the other; of those that wait, the newest alone.

    The thread ends when nothing is left to send, and does not keep a process from ending. After a `StorageError` the
    next one is tried, after any other error none.

    Attributes:
        current: the name of what is being sent; "" where nothing is.

    Args:
        send: sends one.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self.current = ""
        self._send, self._next = send, ""
        self._failure: Exception | None = None
        self._running = False
        self._changed = threading.Condition()

    def give(self, name: str) -> None:
        """Have this one sent, in place of one that waits."""
        with self._changed:
            self._next = name
            if not self._running and not self._is_over():
                self._running = True
                threading.Thread(target=self._run, name="checkpoints", daemon=True).start()

    def wait(self, seconds: float | None) -> bool:
        """Wait until nothing is left to send, at most so long; return whether nothing is.

        Raises:
            Exception: what came of the last that was tried.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: not self._running, seconds)
            failure = self._failure
            if not self._is_over():
                self._failure = None
        if failure is not None:
            raise failure
        return done

    def _run(self) -> None:
        while name := self._taken():
            failure: Exception | None = None
            try:
                self._send(name)
            except Exception as error:  # the training's own thread raises it
                failure = error
            with self._changed:
                self._failure = failure

    def _taken(self) -> str:
        with self._changed:
            self.current, self._next = "" if self._is_over() else self._next, ""
            if not self.current:
                self._running = False
                self._changed.notify_all()
            return self.current

    def _is_over(self) -> bool:
        return self._failure is not None and not isinstance(self._failure, StorageError)
