from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metalearn_core.data.decode import decode_items
from metalearn_core.data.sources.contract import SourceClass
from metalearn_core.data.sources.open import open_source


@pytest.fixture(scope="module")
def letters() -> list[SourceClass]:
    return open_source("glyphs").classes(Path())


def draw(found: SourceClass, size: int = 28) -> np.ndarray:
    examples = decode_items((open_source("glyphs").loader(size, "grey"), found.items)).examples
    assert examples is not None
    return examples


def test_there_are_hundreds_of_letters_of_many_scripts(letters: list[SourceClass]) -> None:
    assert 400 <= len(letters) <= 900
    scripts = Counter(found.domain for found in letters)
    assert len(scripts) >= 10
    assert min(scripts.values()) >= 10


def test_each_letter_has_twenty_pictures(letters: list[SourceClass]) -> None:
    assert {len(found.items) for found in letters} == {20}


def test_names_are_readable_and_unique(letters: list[SourceClass]) -> None:
    names = [found.name for found in letters]
    assert len(set(names)) == len(names)
    assert "Hebrew/U+05D0 HEBREW LETTER ALEF" in names


def test_look_alikes_of_several_scripts_are_one_class(letters: list[SourceClass]) -> None:
    names = " ".join(found.name for found in letters)
    assert "LATIN CAPITAL LETTER A" in names
    assert "GREEK CAPITAL LETTER ALPHA" not in names
    assert "CYRILLIC CAPITAL LETTER A " not in f"{names} "
    assert "LATIN SMALL LETTER O/" not in names


def test_pictures_are_black_on_white_and_all_different(letters: list[SourceClass]) -> None:
    for found in letters[::90]:
        pictures = draw(found)
        assert pictures.shape == (20, 1, 28, 28)
        assert len({picture.tobytes() for picture in pictures}) == 20
        assert np.median(pictures) == 255
        assert (pictures.reshape(20, -1).min(1) < 100).all()


def test_pictures_are_the_same_every_time(letters: list[SourceClass]) -> None:
    assert np.array_equal(draw(letters[7]), draw(letters[7]))


def test_pictures_of_a_letter_are_nearer_to_one_another_than_to_other_letters(letters: list[SourceClass]) -> None:
    chosen = np.stack([draw(found) for found in letters[::60]]).astype(float)
    means = chosen[:, 1::2].mean(1).reshape(len(chosen), -1)
    queries = chosen[:, ::2].reshape(len(chosen), 10, -1)
    nearest = ((queries[:, :, None] - means) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.arange(len(chosen))[:, None]).mean() > 0.5  # 0.07 by chance


def test_fingerprint_names_what_draws() -> None:
    assert "pillow" in open_source("glyphs").fingerprint()
