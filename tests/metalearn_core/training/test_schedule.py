import math

import pytest

from metalearn_core.training.schedule import learning_rate


def test_cosine_goes_from_the_start_to_zero():
    assert learning_rate(0.1, "cosine", 0) == 0.1
    assert learning_rate(0.1, "cosine", 0.25) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    assert learning_rate(0.1, "cosine", 0.5) == pytest.approx(0.05)
    assert learning_rate(0.1, "cosine", 1.3) == learning_rate(0.1, "cosine", 1) == 0


def test_constant_stays():
    assert learning_rate(0.1, "constant", 0.7) == 0.1
