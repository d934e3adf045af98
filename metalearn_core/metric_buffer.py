"""Metrics over steps on their way to the tracking server: collected, sent in batches, and kept while it is away."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from metalearn_core.errors import one_line
from metalearn_core.events import emit
from metalearn_core.tracking_server import client, explained, impatience, shown, tracking_uri

METRICS_A_CALL = 1000
_LAST_CALL_S = 5.0


class MetricBuffer:
    """Sends a run's metrics from a thread of its own, so that training neither waits for the server nor dies with it.

    While the server is away the metrics stay in memory, and each next flush tries again; one `warning` event says so.
    As a context manager it sends the rest at the end; after an error the server has some seconds to take it.

    Args:
        run_id: of an existing run.
        every_seconds: between two flushes.
        step: the name that warnings are reported under.
        uri: of the tracking server; MLFLOW_TRACKING_URI by default.
    """

    def __init__(
        self, run_id: str, *, every_seconds: float = 10.0, step: str = "train", uri: str | None = None
    ) -> None:
        self._run_id, self._period, self._step = run_id, every_seconds, step
        self._uri = uri or tracking_uri()
        self._client: Any = None
        self._waiting: deque[tuple[str, float, int, int]] = deque()
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._send_regularly, name="metrics", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the values of some metrics at a step (an episode number); they are sent later."""
        now = time.time_ns() // 1_000_000
        self._waiting.extend((name, float(value), now, step) for name, value in metrics.items())

    def flush(self) -> int:
        """Try to send all that waits; return how many values still wait."""
        with self._sending:
            try:
                while self._waiting:
                    self._send(min(len(self._waiting), METRICS_A_CALL))
                self._failure = None
            except Exception as error:  # whatever is wrong with the server, training goes on
                self._report(one_line(error))
            return len(self._waiting)

    def close(self) -> int:
        """Send the rest, and return how many values could not be sent; a `warning` event names their number and why."""
        self._closing.set()
        self._thread.join()
        return self._counted(self.flush())

    def close_soon(self) -> int:
        """Do as `close` does, but give up within some ten seconds: the process may have been asked to end."""
        self._closing.set()
        self._thread.join(_LAST_CALL_S)
        if self._thread.is_alive():  # it still waits for an answer, and ends with the process
            self._failure = "it does not answer"
            return self._counted(len(self._waiting))
        with impatience():
            return self._counted(self.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close_soon()

    def _counted(self, unsent: int) -> int:
        """Say how many values could not be sent, and why."""
        if unsent:
            lost = f"{unsent} metric values of run {self._run_id} could not be sent to {shown(self._uri)}"
            emit("warning", self._step, text=f"{lost}: {self._failure}")
        return unsent

    def _send_regularly(self) -> None:
        while not self._closing.wait(self._period):
            self.flush()

    def _send(self, count: int) -> None:
        if self._client is None:
            self._client = client(self._uri)
        from mlflow.entities import Metric

        batch = [Metric(*self._waiting[position]) for position in range(count)]
        with explained(self._uri):
            self._client.log_batch(self._run_id, metrics=batch)
        for _ in range(count):
            self._waiting.popleft()

    def _report(self, failure: str) -> None:
        """Say once that metrics wait; say it again only after they could be sent in between."""
        if self._failure is None:
            emit("warning", self._step, text=f"{failure}; metrics are kept, and sent when it answers")
        self._failure = failure
