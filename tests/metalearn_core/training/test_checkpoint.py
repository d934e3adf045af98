import json
import os
import threading

import pytest
import torch

from metalearn_core.errors import MetalearnError, StorageError
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place
from metalearn_core.training.checkpoint import Checkpoints, Progress
from metalearn_core.training.engine import EngineChoices


def progress(step, fingerprint="f"):
    return Progress(fingerprint=fingerprint, step=step, engine=EngineChoices(threads=2, precision="fp32", chunks=1))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(Place(tmp_path / "run"), "maml")
    with made.lock():
        for step in (1, 2, 3):
            made.save(progress(step), {"weight": torch.full((3,), float(step))})
    return made


def test_the_newest_comes_back_and_two_are_kept(checkpoints):
    found, tensors = checkpoints.load("f")
    assert found == progress(3)
    assert torch.equal(tensors["weight"], torch.full((3,), 3.0))
    assert (
        len(list(checkpoints.place.folder.glob("*.safetensors")))
        == len(list(checkpoints.place.folder.glob("*.json")))
        == 2
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_after_one_flipped_byte_the_one_before_is_taken(checkpoints, suffix):
    [path] = checkpoints.place.folder.glob(f"{3:012d}*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.load("f")[0].step == 2
    kept = {path.name[:12] for path in checkpoints.place.folder.glob("0*")}
    assert kept == {f"{2:012d}"}, "the damaged one would outlive the whole one"


def test_a_half_written_one_does_not_count(checkpoints):
    (checkpoints.place.folder / f"{4:012d}.safetensors").write_bytes(b"half")
    assert checkpoints.load("f")[0].step == 3


def test_what_a_killed_writer_left_behind_is_removed(checkpoints):
    left_behind = checkpoints.place.folder / ".000000000004.safetensors.0.tmp"
    left_behind.write_bytes(b"half")
    with checkpoints.lock():
        assert not left_behind.exists()


def test_when_all_are_damaged_it_says_so(checkpoints):
    for path in checkpoints.place.folder.glob("*.json"):
        path.write_text(json.dumps({"progress": 1}))
    with pytest.raises(MetalearnError, match=r"all 2 in .* are damaged"):
        checkpoints.load("f")


def test_another_runs_is_refused_and_can_be_discarded(checkpoints):
    with pytest.raises(MetalearnError, match="another learner, option, plan or dataset"):
        checkpoints.load("g")
    checkpoints.discard()
    assert checkpoints.load("g") is None


def test_a_second_writer_waits_for_the_first(tmp_path):
    first, second = (Checkpoints(Place(tmp_path), "maml") for _ in range(2))
    order = []

    def write():
        with second.lock():
            order.append("second")

    with first.lock():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


@pytest.fixture
def elsewhere(bucket, tmp_path, monkeypatch):
    """Make what follows happen on a machine that has no copies yet."""

    def move(name):
        monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / name))
        return Checkpoints(Place.at(f"{bucket}/run"), "maml")

    return move


def saved(checkpoints, *steps):
    with checkpoints.lock():
        for step in steps:
            checkpoints.save(progress(step), {"weight": torch.full((3,), float(step))})


def test_in_a_bucket_another_machine_goes_on_and_two_are_kept(elsewhere):
    saved(elsewhere("one"), 1, 2, 3)
    other = elsewhere("two")
    with other.lock():
        found, tensors = other.load("f")
        assert found == progress(3)
        assert torch.equal(tensors["weight"], torch.full((3,), 3.0))
        other.save(progress(4), tensors)
    assert len([found for found in other.place.prefix.objects() if found.name.endswith(".json")]) == 2
    first = elsewhere("one")
    with first.lock():
        assert first.load("f")[0].step == 4


def test_of_two_machines_that_write_to_a_bucket_the_second_stops(elsewhere):
    saved(elsewhere("one"), 1)
    slow = elsewhere("two")
    with slow.lock():
        slow.load("f")
        saved(elsewhere("one"), 2)
        elsewhere("two")
        with pytest.raises(MetalearnError, match="another run trains in s3://"):
            slow.save(progress(7), {"weight": torch.zeros(3)})
    last = elsewhere("three")
    with last.lock():
        assert last.load("f")[0].step == 2


def flip_a_byte(path):
    """Damage a file as a disk does, which says nothing of it: its size and its times stay."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_copy_that_is_damaged_here_is_brought_anew_from_a_bucket(elsewhere, suffix):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1, 2)
    there = list(checkpoints.place.prefix.objects())
    [path] = checkpoints.place.folder.glob(f"{2:012d}*{suffix}")
    flip_a_byte(path)
    with checkpoints.lock():
        found, tensors = checkpoints.load("f")
    assert found == progress(2)
    assert torch.equal(tensors["weight"], torch.full((3,), 2.0))
    assert list(checkpoints.place.prefix.objects()) == there


def test_a_copy_that_is_damaged_in_a_bucket_too_gives_way_to_the_one_before(elsewhere, monkeypatch, tmp_path):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1, 2)
    [path] = checkpoints.place.folder.glob(f"{2:012d}*.safetensors")
    flip_a_byte(path)
    checkpoints.place.prefix.write_file(path.name, path)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    with checkpoints.lock():
        assert checkpoints.load("f")[0].step == 1
    assert {found.name[:12] for found in checkpoints.place.prefix.objects()} == {f"{1:012d}"}
    assert (tmp_path / "events.jsonl").read_text().count("is damaged: trying the one before") == 1


def test_what_was_never_sent_and_is_damaged_gives_way_to_the_one_before(elsewhere, monkeypatch, tmp_path):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1)
    save_while_away(checkpoints, monkeypatch, "objects", 2)
    [path] = checkpoints.place.folder.glob(f"{2:012d}*.safetensors")
    flip_a_byte(path)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 1
    assert "is damaged: trying the one before" in (tmp_path / "events.jsonl").read_text()


def test_tensors_in_a_bucket_whose_description_is_missing_do_not_count(elsewhere):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1, 2)
    checkpoints.place.prefix.remove([f"{2:012d}.json"])
    other = elsewhere("two")
    with other.lock():
        assert other.load("f")[0].step == 1


def test_a_machine_that_is_far_behind_stops_too(elsewhere):
    saved(elsewhere("one"), 1)
    slow = elsewhere("two")
    with slow.lock():
        slow.load("f")
        saved(elsewhere("one"), 2, 3, 4, 5)
        elsewhere("two")
        with pytest.raises(MetalearnError, match="another run trains in s3://"):
            slow.save(progress(7), {"weight": torch.zeros(3)})


def test_what_the_bucket_was_not_there_to_take_is_not_lost(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1)

    save_while_away(checkpoints, monkeypatch, "objects", 2)
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 2
        again.save(progress(3), {"weight": torch.full((3,), 3.0)})
    assert max(found.name for found in again.place.prefix.objects()).startswith(f"{3:012d}")


def away(*_, **__):
    raise StorageError("the bucket is away")


def save_while_away(checkpoints, monkeypatch, request, step):
    """Save a checkpoint while the bucket refuses one kind of request."""
    with monkeypatch.context() as outage:
        outage.setattr(Prefix, request, away)
        with checkpoints.lock(), pytest.raises(StorageError):
            checkpoints.save(progress(step), {"weight": torch.full((3,), float(step))})


def test_while_the_bucket_is_away_two_are_kept_here(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1)
    with monkeypatch.context() as outage:
        outage.setattr(Prefix, "objects", away)
        for step in range(2, 7):
            with checkpoints.lock(), pytest.raises(StorageError):
                checkpoints.save(progress(step), {"weight": torch.full((3,), float(step))})
    assert sorted(path.stem for path in checkpoints.place.folder.glob("*.json")) == [f"{5:012d}", f"{6:012d}"]
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 6


def test_what_a_bucket_never_took_from_the_start_is_not_lost(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    with monkeypatch.context() as outage:
        outage.setattr(Prefix, "objects", away)
        for step in (1, 2, 3):
            with checkpoints.lock(), pytest.raises(StorageError):
                checkpoints.save(progress(step), {"weight": torch.full((3,), float(step))})
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 3
        again.save(progress(4), {"weight": torch.full((3,), 4.0)})
    other = elsewhere("two")
    with other.lock():
        assert other.load("f")[0].step == 4


def test_a_run_that_was_discarded_here_begins_anew_though_the_bucket_is_away(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1, 2)
    checkpoints.discard()
    save_while_away(checkpoints, monkeypatch, "objects", 7)
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 7


def test_a_run_that_another_machine_discarded_is_gone(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1)
    save_while_away(checkpoints, monkeypatch, "objects", 2)
    elsewhere("two").discard()
    again = elsewhere("one")
    with again.lock():
        assert again.load("f") is None


def test_saving_does_not_wait_for_a_bucket_and_the_newest_is_sent_when_it_answers(elsewhere, monkeypatch):
    checkpoints, answers, write = elsewhere("one"), threading.Event(), Prefix.write_file

    def slow(self, name, path):
        answers.wait()
        write(self, name, path)

    monkeypatch.setattr(Prefix, "write_file", slow)
    with checkpoints.lock():
        for step in range(1, 8):
            assert not checkpoints.save(progress(step), {"weight": torch.full((3,), float(step))}, wait=0)
        kept = sorted(int(path.stem) for path in checkpoints.place.folder.glob("*.json"))
        assert kept == [1, 6, 7], "the one that is being sent, and the last two"
        answers.set()
        assert checkpoints.save(progress(8), {"weight": torch.full((3,), 8.0)})
    there = {found.name[:12] for found in checkpoints.place.prefix.objects()}
    assert max(there) == f"{8:012d}"
    assert len(there) == 2
    other = elsewhere("two")
    with other.lock():
        assert other.load("f")[0].step == 8


def test_unsent_checkpoints_give_way_to_those_of_another_machine(elsewhere, monkeypatch):
    checkpoints = elsewhere("one")
    saved(checkpoints, 1)
    save_while_away(checkpoints, monkeypatch, "write_new", 2)
    other = elsewhere("two")
    with other.lock():
        other.load("f")
        other.save(progress(7), {"weight": torch.full((3,), 7.0)})
    again = elsewhere("one")
    with again.lock():
        assert again.load("f")[0].step == 7
