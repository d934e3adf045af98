from pathlib import Path

import numpy as np
import pytest

from metalearn_core.data.rotations import TOLERANCE, ClassMeans, distinct_rotations
from metalearn_core.data.sources.glyphs import GlyphSource
from metalearn_core.data.sources.rasterise import Glyph, draw


def means_of(samples: list[np.ndarray]) -> ClassMeans:
    mean = np.stack([x.mean(0) for x in samples])[:, None]
    noise = np.array([x.var(0, ddof=1).sum() / len(x) if len(x) > 1 else 0.0 for x in samples])
    return ClassMeans(mean, noise)


def sampled(pattern: np.ndarray, seed: int, count: int = 20) -> np.ndarray:
    return pattern + np.random.default_rng(seed).normal(0, 0.1, (count, *pattern.shape))


LETTER_F = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], float)
BAR = np.array([[0, 1, 1, 0]] * 4, float)
SQUARE = np.pad(np.ones((2, 2)), 1)


def test_a_shape_without_symmetry_has_four_rotations() -> None:
    assert distinct_rotations(means_of([sampled(LETTER_F, 0), sampled(SQUARE, 1)]), [True, True])[0] == (0, 1, 2, 3)


def test_a_symmetric_shape_has_none_but_its_own() -> None:
    assert distinct_rotations(means_of([sampled(SQUARE, 0)]), [True]) == [(0,)]


def test_half_turn_symmetry_leaves_one_quarter_turn() -> None:
    assert distinct_rotations(means_of([sampled(BAR, 0)]), [True]) == [(0, 1)]


def test_a_rotation_that_is_another_class_is_dropped_whatever_its_split() -> None:
    samples = [sampled(LETTER_F, 0), sampled(np.rot90(LETTER_F), 1)]
    assert distinct_rotations(means_of(samples), [True, False]) == [(0, 2, 3), (0,)]


def test_two_training_classes_that_are_rotations_of_each_other_share_them() -> None:
    samples = [sampled(LETTER_F, 0), sampled(np.rot90(LETTER_F), 1)]
    assert distinct_rotations(means_of(samples), [True, True]) == [(0, 2, 3), (0,)]


def test_single_examples_coincide_only_when_identical() -> None:
    samples = [LETTER_F[None], np.rot90(LETTER_F)[None], (LETTER_F + 0.01)[None]]
    assert distinct_rotations(means_of(samples), [True, False, False]) == [(0, 2, 3), (0,), (0,)]


def test_many_classes_are_compared_across_chunks() -> None:
    patterns = np.random.default_rng(0).normal(size=(600, 6, 6))
    patterns[599] = np.rot90(patterns[0])
    samples = [sampled(pattern, i, 5) for i, pattern in enumerate(patterns)]
    rotations = distinct_rotations(means_of(samples), [True] * 600)
    assert rotations[0] == (0, 2, 3)
    assert rotations[599] == (0,)
    assert rotations[1:599] == [(0, 1, 2, 3)] * 598


@pytest.mark.parametrize("bytes_a_chunk", [1, 700, 10_000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, bytes_a_chunk: int) -> None:
    samples = [sampled(pattern, i) for i, pattern in enumerate([LETTER_F, BAR, SQUARE, np.rot90(LETTER_F)])]
    whole = distinct_rotations(means_of(samples), [True] * 4)
    monkeypatch.setattr("metalearn_core.data.rotations._CHUNK_BYTES", bytes_a_chunk)
    assert distinct_rotations(means_of(samples), [True] * 4) == whole


def test_four_of_five_letters_that_are_drawn_twice_coincide(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    letters = GlyphSource().classes(tmp_path)
    coincide = []
    for position in random.choice(len(letters), 100, replace=False):
        items = letters[position].items
        fonts = sorted({item.place.font for item in items})
        glyphs = [Glyph(items[0].place.character, fonts[k % len(fonts)], k) for k in range(40)]
        drawn = np.stack([np.asarray(draw(glyph, 28), float) for glyph in glyphs])
        one, other = np.split(drawn[random.permutation(40)], 2)
        distance = ((one.mean(0) - other.mean(0)) ** 2).sum()
        noise = sum(half.var(0, ddof=1).sum() / 20 for half in (one, other))
        coincide.append(distance <= TOLERANCE * noise)
    assert 0.7 < np.mean(coincide) < 0.9
