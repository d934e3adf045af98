"""What is spilled is whole, or what went wrong is said as it is."""

import errno
import resource
from pathlib import Path

import pytest

from metalearn_core.data.sources.spill import SpillWriter


def test_a_disk_without_room_for_the_places_is_the_systems_own_error(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, SpillWriter(tmp_path / "rows", 10_000):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG


def test_after_an_error_no_places_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="went wrong"), SpillWriter(tmp_path / "rows", 10):
        raise ValueError("went wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
