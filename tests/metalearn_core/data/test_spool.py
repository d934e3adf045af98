import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from metalearn_core.data.decode import Decoded
from metalearn_core.data.rotations import ClassMeans, distinct_rotations
from metalearn_core.data.spool import ClassSpool

SIZE = 64


def decoded(seed: int, count: int = 2) -> Decoded:
    """Return the pictures of a class: noise of its own, and the same a little brighter."""
    pattern = np.random.default_rng(seed).integers(0, 250, (1, SIZE, SIZE), dtype=np.uint8)
    examples = np.stack([pattern + np.uint8(number) for number in range(count)])
    return Decoded(examples, [bytes([i]) for i in range(count)], [f"{seed}/{i}" for i in range(count)], [])


def test_means_stand_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    with closing(ClassSpool(tmp_path)) as spool:
        for number in range(5):
            spool.add(str(number), "default", [decoded(number)])
        means = spool.means([spool.classes[4], spool.classes[1]])
        for mean, seed in zip(means, (4, 1), strict=True):
            np.testing.assert_allclose(mean, decoded(seed).examples.mean(0), rtol=1e-6)


def test_means_of_many_classes_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = 400
    monkeypatch.setattr("metalearn_core.data.rotations._CHUNK_BYTES", 40 * SIZE * SIZE * 8)
    with closing(ClassSpool(tmp_path)) as spool:
        for number in range(classes):
            spool.add(str(number), "default", [decoded(number)])
        tracemalloc.start()
        try:
            noise = np.array([found.noise for found in spool.classes])
            distinct_rotations(ClassMeans(spool.means(spool.classes), noise), [True] * classes)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < classes * SIZE * SIZE * 8 / 2
