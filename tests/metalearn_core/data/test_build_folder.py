import getpass
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metalearn_core.data.build import build_dataset
from metalearn_core.data.build_folder import private_folder
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, read_manifest
from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.storage import write_json

PROGRAM = """
import resource, sys
from pathlib import Path
from metalearn_core.data.build import build_dataset
from metalearn_core.errors import one_line
source, out, file_size = sys.argv[1:]
if int(file_size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_size), int(file_size)))
try:
    build_dataset(source, Path(out), workers=2)
except Exception as error:
    sys.exit(one_line(error))
"""


def start(source: str, out: Path, file_size: int = 0) -> subprocess.Popen[str]:
    """Start a build in a process of its own, which can write files of at most `file_size` bytes where that is given."""
    command = [sys.executable, "-c", PROGRAM, source, str(out), str(file_size)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole_and_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build = start("glyphs", out)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob(".out.*.tmp/scratch/examples")):
        assert time.monotonic() < deadline
        assert build.poll() is None
        time.sleep(0.002)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    assert not out.exists()
    again = start("glyphs", out)
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(EpisodeDataset.open(out).manifest.classes) > 400


def test_two_builds_at_once_leave_one_whole_dataset(image_folder: Path, tmp_path: Path) -> None:
    builds = [start(str(image_folder), tmp_path / "out") for _ in range(2)]
    errors = [build.communicate()[1] for build in builds]
    assert 0 in [build.returncode for build in builds]
    assert all("is there already" in error or not error for error in errors)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(EpisodeDataset.open(tmp_path / "out").examples) == 24 * 8


@pytest.mark.parametrize("same", [True, False])
def test_a_build_that_is_overtaken_says_so_where_the_other_dataset_differs(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    out, options = tmp_path / "out", BuildOptions(image_size=12)
    overtaking = []

    def overtaken(path: Path, value: object) -> None:
        monkeypatch.setattr("metalearn_core.data.build.write_json", write_json)
        other = options if same else BuildOptions(image_size=13)
        overtaking.append(build_dataset(str(image_folder), out, other))
        write_json(path, value)

    monkeypatch.setattr("metalearn_core.data.build.write_json", overtaken)
    if same:
        assert build_dataset(str(image_folder), out, options) == overtaking[0]
    else:
        with pytest.raises(MetalearnError, match=r"out: another build put dataset \w{32} there meanwhile"):
            build_dataset(str(image_folder), out, options)
    assert read_manifest(out) == overtaking[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_only_what_builds_of_this_target_left_is_swept(tmp_path: Path, name: str) -> None:
    unique = uuid.uuid4().hex
    left_behind, others = tmp_path / f".{name}.{unique}.tmp", tmp_path / f".{name}.v2.{unique}.tmp"
    left_behind.mkdir()
    others.mkdir()
    with private_folder(tmp_path / name):
        assert not left_behind.exists()
        assert others.exists()


def test_a_live_build_is_not_swept_by_another(tmp_path: Path) -> None:
    with private_folder(tmp_path / "out") as first, private_folder(tmp_path / "out") as second:
        assert first.exists()
        assert second.exists()
        assert first != second


@pytest.mark.parametrize("room", [1000, 20_000])
def test_a_disk_without_room_is_one_line_and_leaves_nothing(image_folder: Path, tmp_path: Path, room: int) -> None:
    build = start(str(image_folder), tmp_path / "out", file_size=room)
    error = build.communicate()[1]
    assert build.returncode == 1
    assert "out: file too large" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere: it becomes nobody for a while, whom every permission binds."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_no_write_permission_is_one_line(image_folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for folder in (*tmp_path.parents, tmp_path, image_folder):
        if folder.owner() == getpass.getuser() and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o555)
    with ordinary_user(), pytest.raises(OSError, match="ermission denied") as caught:
        build_dataset(str(image_folder), closed / "out", BuildOptions(image_size=12))
    assert str(closed) in one_line(caught.value)
