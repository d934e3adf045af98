"""What a training run tells those who watch: progress events, and metrics for a tracking server."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Literal

from metalearn_core import events
from metalearn_core.evaluation.metric import ACCURACY, Metric

Phase = Literal["pretrain", "train"]
OnMetrics = Callable[[dict[str, float], int], None]

REPORT_SECONDS = 0.25
REPORTS = 100


class Reporter:
    """Averages over outer steps, and passes them on: at most four times a second, and a hundred times over the budget.

    Args:
        learner: as events name it.
        on_metrics: called with metrics by name, and the training episodes so far.
        metric: what validation measures.
    """

    def __init__(self, learner: str, on_metrics: OnMetrics | None, metric: Metric = ACCURACY) -> None:
        self._learner, self._on_metrics, self._metric = learner, on_metrics, metric
        self._phase: Phase = "train"
        self._sums = [0.0, 0.0]
        self._steps = 0
        self._episodes = 0
        self._rate = math.nan
        self._last_time = time.monotonic()
        self._last_share = -1
        self._last_metrics: dict[str, float] = {}

    def begin(self, phase: Phase) -> None:
        """Begin a phase, after which its losses and accuracies are named; they are of other classes than before."""
        self._phase, self._sums, self._steps, self._last_metrics = phase, [0.0, 0.0], 0, {}

    def step(self, loss: float, accuracy: float, rate: float, episodes: int) -> None:
        """Count one outer step; in regression the accuracy is minus the error."""
        self._sums = [self._sums[0] + loss, self._sums[1] + self._metric.sign * accuracy]
        self._steps += 1
        self._episodes += episodes
        self._rate = rate

    def recent(self) -> dict[str, float]:
        """Return the mean loss and metric of the phase since the last report."""
        if self._steps:
            names = (f"{self._phase}/loss", f"{self._phase}/{self._metric.name}")
            self._last_metrics = {name: total / self._steps for name, total in zip(names, self._sums, strict=True)}
        return self._last_metrics

    def report(
        self, episodes: int, seconds: float, share: float, validation: Mapping[str, float] | None = None
    ) -> None:
        """Pass on what has come together: always with a validation's metrics, else when it is time.

        Args:
            episodes: training episodes so far.
            seconds: spent so far.
            share: of the budget that is used, 0 to 1.
            validation: its metrics, when there was one.
        """
        now = time.monotonic()
        if validation is None and now - self._last_time < REPORT_SECONDS:
            return
        metrics = {**self.recent(), **(validation or {}), "seconds": seconds, "learning_rate": self._rate}
        metrics["episodes_per_second"] = self._episodes / max(now - self._last_time, 1e-9)
        counted = "episode" if self._phase == "train" else "pretraining, batch"
        text = f"{counted} {episodes:,}, loss {metrics.get(f'{self._phase}/loss', math.nan):.2f}"
        if validation is not None:
            text = f"validation {self._metric.shown(validation[f'validation/{self._metric.name}'])}, {text}"
        events.emit("progress", self._learner, done=min(share, 1.0), total=1.0, text=text)
        due = math.floor(share * REPORTS) > self._last_share
        if self._on_metrics is not None and (due or validation is not None):
            self._on_metrics({name: value for name, value in metrics.items() if math.isfinite(value)}, episodes)
            self._last_share = math.floor(share * REPORTS)
        self._sums, self._steps, self._episodes, self._last_time = [0.0, 0.0], 0, 0, now
