from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn_core.data.moments import merge, moments_of


def exactly(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of values, computed with fractions."""
    exact = [Fraction(float(value)) for value in values.ravel()]
    mean = sum(exact) / len(exact)
    return float(mean), float(sum((value - mean) ** 2 for value in exact) / len(exact)) ** 0.5


def test_a_constant_feature_is_not_scaled() -> None:
    values = np.full((3000, 1), 0.1, np.float32)
    assert moments_of(values).scale().tolist() == [1.0]
    assert merge([moments_of(values[:700]), moments_of(values[700:])]).scale().tolist() == [1.0]


def test_a_large_mean_does_not_blur_a_small_spread() -> None:
    values = np.random.default_rng(0).normal(1e6, 3.0, (4000, 2)).astype(np.float32)
    values[:, 1] = 1e7 + np.arange(4000) % 2 * 40
    found = merge(moments_of(part) for part in np.split(values, 40))
    for feature in range(2):
        mean, std = exactly(values[:, feature])
        assert found.mean[feature] == pytest.approx(mean, rel=1e-14)
        assert found.scale()[feature] == pytest.approx(std, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2500), st.integers(0, 5))
def test_bytes_are_summed_exactly_whatever_the_parts(count: int, seed: int) -> None:
    examples = np.random.default_rng(seed).integers(0, 256, (count, 2, 1, 2), dtype=np.uint8)
    found = moments_of(examples)
    for channel in range(2):
        values = [Fraction(int(value), 255) for value in examples[:, channel].ravel()]
        mean = sum(values) / len(values)
        assert found.mean[channel] == float(mean)
        assert found.deviations[channel] == float(sum((value - mean) ** 2 for value in values))
    cut = count // 2
    if cut:
        parts = merge([moments_of(examples[:cut]), moments_of(examples[cut:])])
        np.testing.assert_allclose(parts.deviations, found.deviations, rtol=1e-12, atol=1e-12)
