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


def compared_by_hand(means: ClassMeans, rotating: list[bool]) -> list[tuple[int, ...]]:
    kept: list[list[int]] = [[0] for _ in rotating]
    for i in np.flatnonzero(rotating):
        for turn in (1, 2, 3):
            turned = np.rot90(means.mean[i], turn, axes=(-2, -1))
            others = [np.rot90(means.mean[j], other, axes=(-2, -1)) for j in range(len(kept)) for other in kept[j]]
            noise = [means.noise[i] + means.noise[j] for j in range(len(kept)) for _ in kept[j]]
            distances = [((turned - one) ** 2).sum() for one in others]
            if not any(distance <= TOLERANCE * own for distance, own in zip(distances, noise, strict=True)):
                kept[i].append(turn)
    return [tuple(turns) for turns in kept]


@pytest.mark.parametrize(("side", "channels"), [(1, 1), (2, 3), (5, 1), (6, 1), (9, 3), (33, 1), (40, 3)])
@pytest.mark.parametrize("offset", [0.0, 200.0])
def test_pairs_are_found_whatever_the_size_the_noise_and_what_all_have_in_common(
    side: int, channels: int, offset: float
) -> None:
    random = np.random.default_rng(side)
    mean = random.normal(size=(40, channels, side, side))
    for number in range(0, 40, 2):  # each second class is near a turn of another one, or near none
        twin = mean[random.integers(40)]
        mean[number] = np.rot90(twin, number % 8 // 2, axes=(-2, -1)) + 0.3 * random.normal(size=twin.shape)
    noise = channels * side**2 * random.choice([0.01, 0.04, 0.1], 40)
    rotating = list(random.random(40) < 0.8)
    means = ClassMeans((mean + offset).astype(np.float32), noise)
    found = distinct_rotations(means, rotating)
    assert found == compared_by_hand(ClassMeans(means.mean.astype(np.float64), noise), rotating)
    assert len(set(found)) > 1 or side == 1


def test_noise_that_hides_everything_leaves_no_turn() -> None:
    mean = np.random.default_rng(0).normal(size=(700, 1, 8, 8))
    assert distinct_rotations(ClassMeans(mean, np.full(700, 1e3)), [True] * 700) == [(0,)] * 700


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
