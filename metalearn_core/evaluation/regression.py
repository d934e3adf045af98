"""Evaluate a learner on regressions: the mean squared error of its predictions, with its interval over tasks."""

import time

import numpy as np
from numpy.typing import NDArray

from metalearn_core.data.manifest import Record
from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.data.tasks import stream_of
from metalearn_core.evaluation.evaluate import Protocol, adaptation_time, check_fit
from metalearn_core.evaluation.scoring import Progress, Scorer
from metalearn_core.evaluation.statistics import t_interval
from metalearn_core.learners.contract import Learner
from metalearn_core.memory import kept_memory


class RegressionEvaluation(Record):
    """How far a learner's predictions are from the targets, and how well that is known.

    Attributes:
        learner: its name.
        mse: squared error, averaged over the queries (and numbers) of an episode and over episodes.
        ci95: half-width of the 95 % t interval over episodes: about this model, on tasks of this distribution; None
            where all errors are equal, which tells nothing of their spread.
        ci95_method: how it was made.
        points: examples that it adapted to.
        adaptation_steps: gradient steps at test, where the learner takes any.
        adaptation_ms: to adapt to one support set, median, in milliseconds.
        seconds: that the whole evaluation took.
        protocol: what it was measured on.
        dataset_digest: likewise.
    """

    learner: str
    mse: float
    ci95: float | None
    ci95_method: str
    points: int
    adaptation_steps: int | None
    adaptation_ms: float
    seconds: float
    protocol: Protocol
    dataset_digest: str


def evaluate_regression(learner: Learner, tasks: SinusoidTasks, protocol: Protocol) -> RegressionEvaluation:
    """Evaluate a learner on seeded tasks; see `evaluate`.

    Raises:
        UsageError: before any work: the learner was made for classes, or the shape is none of regression.
        MetalearnError: the learner's answers are no numbers.
    """
    started = time.perf_counter()
    check_fit(learner, tasks, protocol)
    device = tasks.place_for(learner.mean.device)
    stream = stream_of(tasks, protocol.split, protocol.shape, seed=protocol.seed, device=device)
    progress = Progress("evaluate", protocol.episodes)
    with kept_memory(), Scorer(learner, protocol.batch_norm, progress) as scorer:
        errors = scorer.squared_errors(stream, protocol.episodes)
        adaptation_ms = adaptation_time(learner, stream)
    mse, half_width, method = error_interval(errors)
    return RegressionEvaluation(
        learner=learner.info.name,
        mse=mse,
        ci95=half_width,
        ci95_method=f"{method}: this model on tasks of this distribution",
        points=protocol.shape.shot,
        adaptation_steps=getattr(learner.config, "eval_steps", None),
        adaptation_ms=adaptation_ms,
        seconds=time.perf_counter() - started,
        protocol=protocol,
        dataset_digest=tasks.digest,
    )


def error_interval(errors: NDArray[np.float64]) -> tuple[float, float | None, str]:
    """Return the mean of errors (n,), the half-width of its 95 % t interval over episodes, and how that was made."""
    if np.ptp(errors) == 0:
        return float(errors[0]), None, f"all {len(errors)} errors are equal, which tells nothing of their spread"
    interval = t_interval(errors, bounds=(0.0, np.inf))
    return interval.mean, interval.half_width, interval.method
