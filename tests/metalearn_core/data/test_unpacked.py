import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metalearn_core.data.unpacked import unpacked

EXAMPLES = np.arange(24, dtype=np.float32).reshape(6, 4)
SIZE = EXAMPLES.nbytes


class Blocks:
    """The examples in two blocks; counts how often they are drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.drawn += 1
        yield EXAMPLES[:2]
        time.sleep(0.05)
        yield EXAMPLES[2:]


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def test_what_is_unpacked_once_is_used_again(tmp_path: Path, blocks: Blocks) -> None:
    for _ in range(3):
        path = unpacked(tmp_path, "name", SIZE, blocks)
        assert path.read_bytes() == EXAMPLES.tobytes()
    assert blocks.drawn == 1


@pytest.mark.parametrize("content", [bytes(SIZE), b"", EXAMPLES.tobytes() + b"more"], ids=["other", "empty", "longer"])
def test_a_file_with_other_content_is_written_anew(tmp_path: Path, blocks: Blocks, content: bytes) -> None:
    unpacked(tmp_path, "name", SIZE, blocks).write_bytes(content)
    assert unpacked(tmp_path, "name", SIZE, blocks).read_bytes() == EXAMPLES.tobytes()
    assert blocks.drawn == 2


def test_a_file_without_a_note_is_not_trusted(tmp_path: Path, blocks: Blocks) -> None:
    path = tmp_path / "name" / "examples"
    path.parent.mkdir()
    path.write_bytes(bytes(SIZE))
    assert unpacked(tmp_path, "name", SIZE, blocks).read_bytes() == EXAMPLES.tobytes()


def test_a_file_that_was_only_touched_is_compared_not_written(tmp_path: Path, blocks: Blocks) -> None:
    path = unpacked(tmp_path, "name", SIZE, blocks)
    os.utime(path, (1, 1))
    note = path.with_suffix(".json")
    before = note.read_bytes()
    unpacked(tmp_path, "name", SIZE, blocks)
    assert blocks.drawn == 1
    assert note.read_bytes() != before


def test_what_a_killed_process_left_is_swept(tmp_path: Path, blocks: Blocks) -> None:
    for name in (".name.0123.tmp", ".another.4567.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "examples").write_bytes(bytes(1000))
    unpacked(tmp_path, "name", SIZE, blocks)
    assert {path.name for path in tmp_path.iterdir()} <= {"name", ".unpacking.lock"}


def test_several_at_once_unpack_it_once(tmp_path: Path, blocks: Blocks) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: unpacked(tmp_path, "name", SIZE, blocks), range(4)))
    assert {path.read_bytes() for path in paths} == {EXAMPLES.tobytes()}
    assert blocks.drawn == 1


def test_a_failure_leaves_nothing_half_written(tmp_path: Path) -> None:
    def damaged() -> Iterator[np.ndarray]:
        yield EXAMPLES[:2]
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        unpacked(tmp_path, "name", SIZE, damaged())
    assert {path.name for path in tmp_path.iterdir()} <= {".unpacking.lock"}
