"""A result is made once for what it was made from, and never taken for whole when it is not."""

import multiprocessing
from pathlib import Path

import pytest

from metalearn_core import reuse
from metalearn_core.storage.place import Place


def write(text: str):
    return lambda folder: (folder / "result.txt").write_text(text)


def refuse(folder: Path) -> None:
    raise AssertionError("it was made again")


def test_the_same_key_is_made_once(tmp_path: Path) -> None:
    first, was_kept = reuse.kept(Place(tmp_path), "training", {"seed": 0}, write("a"))
    assert not was_kept
    again, was_kept = reuse.kept(Place(tmp_path), "training", {"seed": 0}, refuse)
    assert was_kept
    assert again == first


def test_another_key_or_kind_is_another_result(tmp_path: Path) -> None:
    folders = {
        reuse.kept(Place(tmp_path), kind, {"seed": seed}, write("a"))[0]
        for kind in ("training", "evaluation")
        for seed in (0, 1)
    }
    assert len(folders) == 4


def test_a_change_of_the_core_is_another_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = reuse.kept(Place(tmp_path), "training", {}, write("a"))
    monkeypatch.setattr(reuse, "source_digest", lambda: "other")
    second, was_kept = reuse.kept(Place(tmp_path), "training", {}, write("b"))
    assert not was_kept
    assert second != first


@pytest.mark.parametrize("damage", ["change", "remove", "add", "truncate record", "remove record"])
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: str) -> None:
    folder, _ = reuse.kept(Place(tmp_path), "training", {}, write("good"))
    if damage == "change":
        (folder / "result.txt").write_text("goof")
    elif damage == "remove":
        (folder / "result.txt").unlink()
    elif damage == "add":
        (folder / "more.txt").write_text("x")
    elif damage == "truncate record":
        (folder / "contents.json").write_text("{")
    else:
        (folder / "contents.json").unlink()
    folder, was_kept = reuse.kept(Place(tmp_path), "training", {}, write("new"))
    assert not was_kept
    assert (folder / "result.txt").read_text() == "new"


def test_what_a_failure_leaves_is_removed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        reuse.kept(Place(tmp_path), "training", {}, fail)
    assert [path for path in (tmp_path / "training").iterdir() if path.suffix != ".lock"] == []


def _make_slowly(root: Path, made: "multiprocessing.Queue[int]") -> None:
    import time

    def make(folder: Path) -> None:
        made.put(1)
        time.sleep(0.5)
        (folder / "result.txt").write_text("once")

    reuse.kept(Place(root), "training", {}, make)


def test_two_processes_make_a_result_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    processes = [context.Process(target=_make_slowly, args=(tmp_path, made)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert made.get(timeout=5) == 1
    assert made.empty()
