"""Mean and spread of values, from parts that are merged without losing digits to cancellation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

CONSTANT = 1e-6
_CHUNK = 1024
_BYTE = 255


@dataclass(frozen=True)
class Moments:
    """What is known of the values of each channel or feature.

    Attributes:
        count: of the values of each.
        mean: (c,) of the values; bytes are divided by 255.
        deviations: (c,) sum of the squared distances from the mean.
    """

    count: int
    mean: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]

    def scale(self) -> npt.NDArray[np.float64]:
        """Return the standard deviations (c,), to divide by: 1 for what is constant but for rounding.

        That is where the standard deviation is at most 1e-6 of the mean, or of 1 where the mean is smaller.
        """
        std = np.sqrt(self.deviations / self.count)
        constant = std <= CONSTANT * np.maximum(1, np.abs(self.mean))
        return np.where(constant, 1.0, std)


def moments_of(examples: npt.NDArray[Any]) -> Moments:
    """Return the moments of examples (n, c, …) over all axes but the second.

    They are the same on every machine: bytes are added up as integers, and other values in a fixed order.
    """
    if examples.dtype == np.uint8:
        return _moments_of_bytes(examples)
    return merge(_two_passes(chunk.astype(np.float64)) for chunk in chunks(examples))


def merge(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all parts together, of which there is one at least.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    return reduce(_merge_two, parts)


def chunks(examples: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the examples (n, *x) some at a time, so that their copies stay small."""
    return (examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK))


def _merge_two(one: Moments, other: Moments) -> Moments:
    count = one.count + other.count
    distance = other.mean - one.mean
    mean = one.mean + distance * (other.count / count)
    between = distance**2 * (one.count * other.count / count)
    return Moments(count, mean, one.deviations + other.deviations + between)


def _two_passes(values: npt.NDArray[np.float64]) -> Moments:
    axes = _all_but_channels(values)
    count = values.size // values.shape[1]
    mean = values.sum(axes) / count
    distances = values - mean.reshape(-1, *(1,) * (values.ndim - 2))
    return Moments(count, mean, (distances**2).sum(axes))


def _moments_of_bytes(examples: npt.NDArray[Any]) -> Moments:
    axes = _all_but_channels(examples)
    width = examples.shape[1]
    totals, squares = np.zeros(width, np.int64), np.zeros(width, np.int64)
    for chunk in chunks(examples):
        values = chunk.astype(np.int64)
        totals += values.sum(axes)
        squares += (values**2).sum(axes)
    count = examples.size // width
    mean = [total / (count * _BYTE) for total in totals.tolist()]
    deviations = [
        (count * square - total**2) / (count * _BYTE**2)
        for total, square in zip(totals.tolist(), squares.tolist(), strict=True)
    ]
    return Moments(count, np.array(mean), np.array(deviations))


def _all_but_channels(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(axis for axis in range(values.ndim) if axis != 1)
