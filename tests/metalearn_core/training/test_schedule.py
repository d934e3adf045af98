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


def test_linear_goes_to_zero_and_halving_halves_so_often():
    assert learning_rate(0.2, "linear", 0.25) == pytest.approx(0.15)
    assert learning_rate(0.2, "linear", 1.5) == 0
    rates = [learning_rate(0.8, "halving", progress / 20, halvings=4) for progress in range(20)]
    assert rates == [0.8] * 5 + [0.4] * 5 + [0.2] * 5 + [0.1] * 5
