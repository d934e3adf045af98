"""A place in a bucket and this machine's copy of it: nothing comes twice, and what differs is brought again."""

import os
from pathlib import Path

import pytest

from metalearn_core import reuse
from metalearn_core.errors import MetalearnError
from metalearn_core.storage.mirror import fetch_objects
from metalearn_core.storage.objects import Prefix, StoredObject
from metalearn_core.storage.place import Place


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all objects that were downloaded."""
    names: list[str] = []
    download = Prefix.download

    def counted(self: Prefix, files: dict[str, Path]) -> None:
        names.extend(files)
        download(self, files)

    monkeypatch.setattr(Prefix, "download", counted)
    return names


def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "other-cache"))


def test_an_object_is_downloaded_once_and_again_when_it_changes(bucket: str, downloads: list[str]) -> None:
    place = Place.at(f"{bucket}/a")
    prefix = Prefix.parse(f"{bucket}/a")
    prefix.write("x", b"one")
    for _ in range(3):
        place.fetch(["x"])
    assert downloads == ["x"]
    prefix.write("x", b"two")
    place.fetch(["x"])
    assert (place.folder / "x").read_bytes() == b"two"
    (place.folder / "x").write_bytes(b"changed here")
    place.fetch(["x"])
    assert (place.folder / "x").read_bytes() == b"two"
    assert downloads == ["x"] * 3


def test_what_was_sent_from_here_is_not_downloaded(bucket: str, downloads: list[str]) -> None:
    place = Place.at(f"{bucket}/a")
    place.folder.mkdir(parents=True)
    for name in ("x", "marker"):
        (place.folder / name).write_bytes(name.encode())
    assert place.commit(["x"], "marker")
    place.fetch(["marker", "x"])
    assert downloads == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//x"])
def test_a_name_that_leads_out_of_the_folder_is_refused(bucket: str, name: str) -> None:
    with pytest.raises(MetalearnError, match="cannot be a file's"):
        fetch_objects(Prefix.parse(bucket), [StoredObject(name, 1, "etag")])


def write(text: str):
    return lambda folder: (folder / "result.txt").write_text(text)


def refuse(folder: Path) -> None:
    raise AssertionError("it was made again")


def test_a_result_that_one_machine_made_is_found_by_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{bucket}/results"
    made, _ = reuse.kept(Place.at(root), "training", {}, write("a"))
    other_machine(monkeypatch, tmp_path)
    found, was_kept = reuse.kept(Place.at(root), "training", {}, refuse)
    assert was_kept
    assert found != made
    assert (found / "result.txt").read_text() == "a"


def test_of_two_machines_the_second_takes_what_the_first_made(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{bucket}/results"

    def make(folder: Path) -> None:
        (folder / "result.txt").write_text("second")
        with monkeypatch.context() as elsewhere:
            other_machine(elsewhere, tmp_path)
            reuse.kept(Place.at(root), "training", {}, write("first"))

    folder, was_kept = reuse.kept(Place.at(root), "training", {}, make)
    assert was_kept
    assert (folder / "result.txt").read_text() == "first"


def test_a_damaged_copy_is_brought_again_and_a_damaged_object_made_again(bucket: str) -> None:
    root = Place.at(f"{bucket}/results")
    folder, _ = reuse.kept(root, "training", {}, write("good"))
    (folder / "result.txt").write_text("goof")
    folder, was_kept = reuse.kept(root, "training", {}, refuse)
    assert was_kept
    assert (folder / "result.txt").read_text() == "good"
    place = reuse.result_place(root, "training", {})
    assert place.prefix is not None
    place.prefix.write("result.txt", b"gone bad")
    folder, was_kept = reuse.kept(root, "training", {}, write("new"))
    assert not was_kept
    assert place.prefix.read("result.txt") == b"new"


@pytest.mark.parametrize("lost", ["result.txt", "contents.json"])
def test_a_result_that_lost_an_object_is_whole_again(bucket: str, lost: str) -> None:
    root = Place.at(f"{bucket}/results")
    reuse.kept(root, "training", {}, write("good"))
    place = reuse.result_place(root, "training", {})
    assert place.prefix is not None
    place.prefix.remove([lost])
    reuse.kept(root, "training", {}, write("good"))
    assert place.prefix.read("result.txt") == b"good"
    assert place.prefix.find("contents.json") is not None


def test_a_copy_that_cannot_be_removed_costs_nothing_in_the_bucket(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Place.at(f"{bucket}/results")
    folder, _ = reuse.kept(root, "training", {}, write("good"))
    written = (folder / "result.txt").stat()
    (folder / "result.txt").write_text("goof")
    os.utime(folder / "result.txt", ns=(written.st_atime_ns, written.st_mtime_ns))  # a fault of the disk: no new time

    def refuse_removal(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("metalearn_core.storage.place.shutil.rmtree", refuse_removal)
    with pytest.raises(PermissionError):
        reuse.kept(root, "training", {}, refuse)
    place = reuse.result_place(root, "training", {})
    assert place.prefix is not None
    assert place.prefix.read("result.txt") == b"good"


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_an_object_that_has_others_below_its_name_is_refused(bucket: str, names: tuple[str, str]) -> None:
    prefix = Prefix.parse(f"{bucket}/odd")
    with pytest.raises(MetalearnError, match="cannot be a file's"):
        fetch_objects(prefix, [StoredObject(name, 1, "etag") for name in names])


def test_a_name_that_is_too_long_for_a_file_is_refused(bucket: str) -> None:
    with pytest.raises(MetalearnError, match="cannot be a file's"):
        fetch_objects(Prefix.parse(bucket), [StoredObject("x" * 256, 1, "etag")])
