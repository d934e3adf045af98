"""Files and folders are whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn_core import storage
from metalearn_core.errors import MetalearnError, one_line


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.json"
    storage.write_json(file, {"version": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        storage.write_json(file, {"version": 2})
    assert storage.read_json(file, "file") == {"version": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_too_large_for_the_device_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys, signal, pathlib\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from metalearn_core.storage import write_bytes\n"
        "try:\n    write_bytes(pathlib.Path(sys.argv[1]), bytes(5000))\n"
        "except OSError:\n    print('refused')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "refused\n"
    assert list(tmp_path.iterdir()) == []


def test_only_the_systems_errors_are_given_the_name_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="space") as caught, storage.named_errors(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert one_line(caught.value) == f"{tmp_path / 'x'}: no space left on device"
    with pytest.raises(OSError, match=r"^Corrupt snappy compressed data$"), storage.named_errors(tmp_path / "x"):
        raise OSError("Corrupt snappy compressed data")


def test_a_folder_takes_the_place_of_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "empty")
    with storage.new_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "elsewhere" / "empty" / "a").read_text() == "a"
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["empty"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_in_the_middle() -> None:
        with storage.new_folder(tmp_path / "folder") as folder:
            (folder / "a").write_text("a")
            assert not (tmp_path / "folder").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle()
    assert list(tmp_path.iterdir()) == []
    with storage.new_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "folder" / "a").read_text() == "a"


def test_the_first_of_two_writers_of_a_folder_wins(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "folder") as slow:
        (slow / "a").write_text("slow")
        with storage.new_folder(tmp_path / "folder") as fast:
            (fast / "a").write_text("fast")
    assert (tmp_path / "folder" / "a").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "there is no"), ("{", "not JSON"), (b"\xff\xfe", "not JSON")]
)
def test_unreadable_json_is_one_line(tmp_path: Path, content: str | bytes | None, complaint: str) -> None:
    file = tmp_path / "file.json"
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(MetalearnError, match=complaint):
        storage.read_json(file, "manifest")


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    assert storage.text_digest({"a": 1, "b": 2}) == storage.text_digest({"b": 2, "a": 1})
    assert storage.text_digest({"a": 1}) != storage.text_digest({"a": 2})
