"""How much of a training's budget is spent, and when its validations are due: functions of plan and progress."""

import math
import time

from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.plan import TrainingPlan

VALIDATION_SHARE = 0.15


def share_of_budget(plan: TrainingPlan, progress: Progress, now: float) -> float:
    """Return the share (from 0) of the budget that is used; in seconds, the last validation's are kept in reserve.

    Args:
        plan: with a budget of episodes, or of seconds.
        progress: so far.
        now: seconds spent, over all attempts.
    """
    if plan.episodes is not None:
        return progress.episodes / plan.episodes
    assert plan.seconds is not None
    reserve = min(progress.last_validation_seconds, plan.seconds / 2)
    return now / (plan.seconds - reserve)


def is_spent(plan: TrainingPlan, progress: Progress, now: float) -> bool:
    """Return whether training is over: the budget is used, or patience has run out, which pretraining does not try."""
    patience = None if progress.phase == "pretrain" else plan.patience
    if patience is not None and progress.since_best >= patience:
        return True
    return share_of_budget(plan, progress, now) >= 1


def validation_is_due(plan: TrainingPlan, progress: Progress, now: float, *, spent: bool) -> bool:
    """Return whether to run the validation episodes now: as planned, so long as they do not take too much of the time.

    Args:
        plan: with validations.
        progress: so far.
        now: seconds spent, over all attempts.
        spent: training is over, and the last weights count too.
    """
    if progress.validated_at == progress.episodes:
        return False
    if spent:
        return True
    scheduled = math.floor(share_of_budget(plan, progress, now) * plan.validations)
    put_off = 0.0 if progress.history else progress.last_validation_seconds
    affordable = plan.seconds is None or progress.validation_seconds + put_off <= VALIDATION_SHARE * now
    return scheduled > progress.validations and affordable


class Pace:
    """How long a validation takes, from its first episodes.

    Args:
        episodes: of the validation.
    """

    def __init__(self, episodes: int) -> None:
        self._episodes, self._done, self._started = episodes, 0, time.monotonic()

    def count(self, episodes: int) -> None:
        """Count so many episodes as done; none, while what they share is computed."""
        self._done += episodes

    def seconds(self) -> float:
        """Return the seconds that it has taken so far."""
        return time.monotonic() - self._started

    def expected(self) -> float:
        """Return the seconds that it will take in all; as long as no episode is done, the least that it can."""
        return self.seconds() * (self._episodes / self._done if self._done else 1)

    def takes_too_long(self, plan: TrainingPlan, progress: Progress) -> bool:
        """Return whether a first validation would take more than its share of all seconds: later ones are known.

        The first episodes take longer than others, and are no measure before a part of that share is over.
        """
        if plan.seconds is None or progress.history:
            return False
        share = VALIDATION_SHARE * plan.seconds
        return self.seconds() > share / 4 and self.expected() > share


class Clock:
    """Seconds spent, those of earlier attempts included.

    Args:
        before: of the earlier attempts.
    """

    def __init__(self, before: float) -> None:
        self._before, self._started = before, time.monotonic()

    def seconds(self) -> float:
        """Return the seconds spent so far."""
        return self._before + time.monotonic() - self._started
