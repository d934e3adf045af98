"""The validation episodes of a training: the same ones each time, scored by the learner as it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.evaluation.regression import error_interval
from metalearn_core.evaluation.scoring import Scorer
from metalearn_core.evaluation.statistics import t_interval
from metalearn_core.learners.contract import Learner
from metalearn_core.training.budget import Pace
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.termination import SigtermFlag, StopRequested
from metalearn_core.training.world import World

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Stream


@dataclass(frozen=True)
class Validation:
    """What a run of the validation episodes came to.

    Attributes:
        mean, half_width: over episodes, with the 95 % interval: accuracies, or in regression errors; NaN: put off.
        seconds: that it took.
        expected: that it takes when it is not put off.
        put_off: whether it was left, since it would take too much of the training's time.
    """

    mean: float
    half_width: float
    seconds: float
    expected: float
    put_off: bool


def validate(
    learner: Learner,
    stream: "Stream",
    plan: TrainingPlan,
    progress: Progress,
    world: World,
    stop: SigtermFlag,
    *,
    last: bool,
) -> Validation:
    """Run the validation episodes; but for the last time, they are put off where they take too much of the time.

    The first process scores them, and all of them get what it found.

    Args:
        learner: in the batch-norm mode that it is trained in.
        stream: of validation episodes.
        plan: how many episodes, and how many seconds the training has.
        progress: so far.
        world: the processes that train together.
        stop: set when the process is asked to end.
        last: training is over.

    Raises:
        StopRequested: the first process was asked to end.
        NoNumbersError: in the first process: an answer is no number.
    """
    pace = Pace(plan.validation_episodes)

    def stop_or_put_off(episodes: int) -> None:
        if stop.is_set():
            raise StopRequested
        pace.count(episodes)
        if not last and pace.takes_too_long(plan, progress):
            raise _PutOff

    mean, half_width, put_off = math.nan, math.nan, False
    if world.leads:
        try:
            with stop.leaving_at_once():
                mean, half_width = _scored(learner, stream, plan.validation_episodes, stop_or_put_off)
        except (StopRequested, _PutOff) as ended:
            put_off = isinstance(ended, _PutOff)
    mean, half_width, put_off_there = world.agree(mean, half_width, put_off)
    if math.isnan(mean) and not put_off_there:
        raise StopRequested
    seconds, expected = world.agree(pace.seconds(), pace.expected())
    return Validation(mean, half_width, seconds, expected, bool(put_off_there))


class _PutOff(Exception):  # noqa: N818
    """Leaves a validation that would take too much of the training's time."""


def _scored(learner: Learner, stream: "Stream", episodes: int, progress: Callable[[int], None]) -> tuple[float, float]:
    """Return the mean over episodes and the half-width of its 95 % interval.

    `progress` is called between episodes with how many are done; it may raise, to stop.
    """
    with Scorer(learner, learner.batch_norm, progress) as scorer:
        if not isinstance(stream, EpisodeSampler):
            mean, half_width, _ = error_interval(scorer.squared_errors(stream, episodes))
            return mean, half_width or 0.0
        interval = t_interval(scorer.score(stream, episodes).accuracy)
    return interval.mean, interval.half_width
