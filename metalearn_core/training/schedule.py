"""The learning rate over the training budget."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "linear", "halving"]


def learning_rate(start: float, schedule: Schedule, progress: float, halvings: int = 10) -> float:
    """Return the learning rate after a share `progress` (0 to 1) of the budget.

    Args:
        start: at the start.
        schedule: cosine and linear go from `start` to zero; halving halves it, `halvings` times over the budget.
        progress: the share of the budget that is spent.
        halvings: the last one falls on the end.
    """
    spent = min(max(progress, 0.0), 1.0)
    factors = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * spent)) / 2,
        "linear": 1 - spent,
        "halving": 0.5 ** math.floor(spent * halvings),
    }
    return start * factors[schedule]
