"""Which quarter turns of a class are classes of their own: those that look like no other class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

QUARTER_TURNS = 4
TOLERANCE = 1.25
_ROUNDING = 1e-9
_CHUNK_BYTES = 64 * 1024 * 1024
_CHUNK = 512
_FEATURES = 256
_FEW = 0.02  # of a chunk's pairs: so many are quicker compared one by one than all together


@dataclass(frozen=True)
class ClassMeans:
    """What the examples of C classes look like on average.

    Attributes:
        mean: (C, c, h, w) floating point, may be memory-mapped.
        noise: (C,) the squared distance of a class's mean from its expectation that sampling alone explains:
            the trace of the covariance of its examples, divided by their number (0 for a single example).
    """

    mean: npt.NDArray[np.floating[Any]]
    noise: npt.NDArray[np.float64]


def distinct_rotations(means: ClassMeans, rotating: Sequence[bool]) -> list[tuple[int, ...]]:
    """Return for each class the quarter turns that count as classes, 0 always among them.

    A turned class is dropped where it coincides with any class that stays, of whatever split, turned or not: the
    squared distance of their means is at most 1.25 times what sampling noise explains. That ratio is a choice: for one
    class sampled twice it is 1 on average, so a lower bound would keep doubles, and a higher one drop classes that are
    merely similar. (Measured: 200 letters of the built-in source, drawn 40 times each and divided five times into
    random halves of 20: the ratio was 1.02 on average, and at most 1.25 for 80 % of them.)

    Every class is compared with every other, most of them by what no turn changes alone (`_unturned`): a sixteenth of
    the work or less. Still the time grows with the square of their number. In memory are a few chunks of the means, 64
    MiB each, at most 257 numbers of each class, and the pairs that coincide.
    """
    classes = len(rotating)
    coinciding = _coincidences(means, rotating)
    kept = [[0] for _ in range(classes)]
    for i in range(classes):
        if not rotating[i]:
            continue
        for turn in range(1, QUARTER_TURNS):
            if not any(
                (turn - other) % QUARTER_TURNS in turns for j, turns in coinciding[i].items() for other in kept[j]
            ):
                kept[i].append(turn)
    return [tuple(turns) for turns in kept]


def _coincidences(means: ClassMeans, rotating: Sequence[bool]) -> list[dict[int, set[int]]]:
    """Return for each rotating class the classes that it coincides with, and after how many turns of its own."""
    found: list[dict[int, set[int]]] = [{} for _ in rotating]
    parts = _chunks(len(rotating), int(np.prod(means.mean.shape[1:])))
    norms = np.concatenate([(_flat(means, part) ** 2).sum(1) for part in parts])
    allowed = TOLERANCE * means.noise + _ROUNDING * norms  # of a pair: the sum of both
    features = _unturned(means, parts)
    least = _least_halves(features, allowed)
    may_turn = np.asarray(rotating, dtype=bool)
    for rows in parts:
        if not may_turn[rows].any():
            continue
        block = means.mean[rows].astype(np.float64)
        for columns in parts:
            near = features[rows] @ features[columns].T >= least[rows, None] + least[None, columns]
            one, other = np.nonzero(near & may_turn[rows, None])
            if not len(one):
                continue
            others = _flat(means, columns)
            limit = allowed[rows][one] + allowed[columns][other] - norms[rows][one] - norms[columns][other]
            for turn in range(QUARTER_TURNS):
                turned = np.rot90(block, turn, axes=(-2, -1)).reshape(len(block), -1)
                for place in np.flatnonzero(-2 * _products(turned, others, one, other) <= limit):
                    row, column = rows.start + int(one[place]), columns.start + int(other[place])
                    found[row].setdefault(column, set()).add(turn)
    return found


def _least_halves(features: npt.NDArray[np.float32], allowed: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return (C,): where features have a smaller inner product than two classes' sum of these, the two do not coincide.

    ‖x − y‖² = ‖x‖² + ‖y‖² − 2 x·y is at most what is allowed where x·y is at least half of the rest. What fp32 may lose
    of an inner product is allowed too.
    """
    squares = np.einsum("cd,cd->c", features, features, dtype=np.float64)
    rounding = 4 * (features.shape[1] + 8) * float(np.finfo(np.float32).eps)
    halves: npt.NDArray[np.float32] = ((squares - allowed - rounding * (squares + allowed)) / 2).astype(np.float32)
    return halves


def _products(
    rows: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
    one: npt.NDArray[np.intp],
    other: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """Return the inner products (k,) of rows (n, d) and columns (m, d), of the pairs that two lists of places name."""
    if len(one) > _FEW * len(rows) * len(columns):
        all_of_them: npt.NDArray[np.float64] = (rows @ columns.T)[one, other]
        return all_of_them
    step = max(1, _CHUNK_BYTES // (16 * rows.shape[1]))
    pieces = [slice(start, start + step) for start in range(0, len(one), step)]
    return np.concatenate([np.einsum("kd,kd->k", rows[one[piece]], columns[other[piece]]) for piece in pieces])


def _unturned(means: ClassMeans, parts: Sequence[slice]) -> npt.NDArray[np.float32]:
    """Return of each class d ≤ 256 numbers that no turn changes, whose distances are at most those of the means.

    They are coordinates in a part of the space of images: each is the sum of a pixel in its four turns, and of
    neighbouring ones in large images, divided by the root of how many pixels those are. What is common to all classes
    is taken away, so that fp32 holds the differences.
    """
    common = sum(means.mean[part].sum(axis=0, dtype=np.float64) for part in parts) / len(means.mean)
    centre = _folded(common[None])
    folded = (_folded(means.mean[part].astype(np.float64)) for part in parts)
    return np.concatenate([(coordinates - centre).astype(np.float32) for coordinates in folded])


def _folded(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the coordinates (n, d) of square images (n, c, s, s)."""
    count, channels, side, _ = images.shape
    long, short = -(-side // 2), side // 2  # a corner of the image: each pixel's turns are outside of it
    twice = images + np.rot90(images, 2, axes=(-2, -1))
    corner = twice[:, :, :long, :short] + np.rot90(twice, axes=(-2, -1))[:, :, :long, :short]
    corner /= 2  # of a pixel's four turns, the sum by the root of four
    cell = 1
    while channels * -(-long // cell) * -(-short // cell) > _FEATURES and cell < side:
        cell += 1
    padded = np.pad(corner, ((0, 0), (0, 0), (0, -long % cell), (0, -short % cell)))
    down, right = (length // cell for length in padded.shape[2:])
    cells = padded.reshape(count, channels, down, cell, right, cell).sum(axis=(3, 5)) / cell
    middle = images[:, :, side // 2, side // 2] if side % 2 else images[:, :, 0, :0]
    return np.concatenate([cells.reshape(count, -1), middle.reshape(count, -1)], axis=1)


def _flat(means: ClassMeans, part: slice) -> npt.NDArray[np.float64]:
    """Return the means of some classes (n, c·h·w), read into memory."""
    return means.mean[part].reshape(part.stop - part.start, -1).astype(np.float64)


def _chunks(classes: int, size: int) -> list[slice]:
    """Divide classes, whose means have `size` values each, into parts that fit in a chunk."""
    step = max(1, min(_CHUNK, _CHUNK_BYTES // (8 * size)))
    return [slice(start, min(start + step, classes)) for start in range(0, classes, step)]
