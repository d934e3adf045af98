"""The learning rate over the training budget."""

import math
from typing import Literal


def learning_rate(start: float, schedule: Literal["cosine", "constant"], progress: float) -> float:
    """Return the learning rate after a share `progress` (0 to 1) of the budget; cosine goes from `start` to zero."""
    if schedule == "constant":
        return start
    return start * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
