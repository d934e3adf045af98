"""The validation episodes of a training: the same ones each time, scored by the learner as it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.evaluation.regression import error_interval
from metalearn_core.evaluation.scoring import Scorer
from metalearn_core.evaluation.statistics import t_interval
from metalearn_core.learners.contract import Learner

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Stream


class ValidationPutOff(Exception):  # noqa: N818
    """Leaves a validation that would take too much of the training's time."""


def validated(
    learner: Learner, stream: "Stream", episodes: int, progress: Callable[[int], None]
) -> tuple[float, float]:
    """Return the mean over episodes and the half-width of its 95 % interval: accuracies, or in regression errors.

    Args:
        learner: in the batch-norm mode that it is trained in.
        stream: of validation episodes.
        episodes: how many.
        progress: called between them with how many are done; may raise, to stop.
    """
    with Scorer(learner, learner.batch_norm, progress) as scorer:
        if not isinstance(stream, EpisodeSampler):
            mean, half_width, _ = error_interval(scorer.squared_errors(stream, episodes))
            return mean, half_width or 0.0
        interval = t_interval(scorer.score(stream, episodes).accuracy)
    return interval.mean, interval.half_width
