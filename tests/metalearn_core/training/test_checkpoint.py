import json
import threading

import pytest
import torch

from metalearn_core.errors import MetalearnError
from metalearn_core.training.checkpoint import Checkpoints, Progress
from metalearn_core.training.engine import EngineChoices


def progress(step, fingerprint="f"):
    return Progress(fingerprint=fingerprint, step=step, engine=EngineChoices(threads=2, precision="fp32", chunks=1))


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "run", "maml")
    with made.lock():
        for step in (1, 2, 3):
            made.save(progress(step), {"weight": torch.full((3,), float(step))})
    return made


def test_the_newest_comes_back_and_two_are_kept(checkpoints):
    found, tensors = checkpoints.load("f")
    assert found == progress(3)
    assert torch.equal(tensors["weight"], torch.full((3,), 3.0))
    assert len(list(checkpoints.folder.glob("*.safetensors"))) == len(list(checkpoints.folder.glob("*.json"))) == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_after_one_flipped_byte_the_one_before_is_taken(checkpoints, suffix):
    path = checkpoints.folder / f"{3:012d}{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.load("f")[0].step == 2


def test_a_half_written_one_does_not_count(checkpoints):
    (checkpoints.folder / f"{4:012d}.safetensors").write_bytes(b"half")
    assert checkpoints.load("f")[0].step == 3


def test_what_a_killed_writer_left_behind_is_removed(checkpoints):
    left_behind = checkpoints.folder / ".000000000004.safetensors.0.tmp"
    left_behind.write_bytes(b"half")
    with checkpoints.lock():
        assert not left_behind.exists()


def test_when_all_are_damaged_it_says_so(checkpoints):
    for path in checkpoints.folder.glob("*.json"):
        path.write_text(json.dumps({"progress": 1}))
    with pytest.raises(MetalearnError, match=r"all 2 in .* are damaged"):
        checkpoints.load("f")


def test_another_runs_is_refused_and_can_be_discarded(checkpoints):
    with pytest.raises(MetalearnError, match="another learner, option, plan or dataset"):
        checkpoints.load("g")
    checkpoints.discard()
    assert checkpoints.load("g") is None


def test_a_second_writer_waits_for_the_first(tmp_path):
    first, second = Checkpoints(tmp_path, "maml"), Checkpoints(tmp_path, "maml")
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
