"""A training in several processes: what is seen of them, and what is left when one of them is killed."""

import threading
import time
from pathlib import Path

import psutil
import pytest

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.events import EVENTS_VARIABLE, ON_STDERR
from metalearn_core.steps.requests import TrainingOrder, training_request, training_resources
from metalearn_core.steps.train_processes import _failure, train_in_processes
from metalearn_core.training.termination import TrainingStoppedError

ITEM = {"learner": "maml", "options": {"meta_batch": 4}, "backbone": "mlp", "backbone_options": {"hidden": [8]}}


def order_of(dataset: EpisodeDataset, folder: Path, episodes: int) -> TrainingOrder:
    return TrainingOrder(
        dataset=str(dataset.folder),
        item=ITEM,
        request=training_request(
            way=3,
            shot=1,
            query=3,
            train_way=3,
            train_shot=1,
            train_query=3,
            episodes=episodes,
            seconds=0,
            precision="fp32",
        ),
        resources=training_resources(processes=2, checkpoint_seconds=0.0),
        checkpoints=str(folder / "checkpoints"),
        bundle=folder / "bundle",
    )


def kill_one(folder: Path) -> None:
    """Kill the second process of the training once it has written a checkpoint."""
    end = time.monotonic() + 60
    while not list((folder / "checkpoints").rglob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.02)
    for child in psutil.Process().children(recursive=True):
        if child.environ().get("RANK") == "1":
            child.kill()


@pytest.mark.slow
def test_the_end_of_the_log_is_shown_where_no_process_knows_why_it_failed(
    small_dataset: EpisodeDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    threading.Thread(target=kill_one, args=(tmp_path,), daemon=True).start()
    goes_on = "the same command goes on from its last checkpoint"
    with pytest.raises(MetalearnError, match=rf"^process 2 of 2 was killed by SIGKILL \(out of memory\?\): {goes_on}$"):
        train_in_processes(order_of(small_dataset, tmp_path, 100_000))
    said = capfd.readouterr().err
    assert "exitcode: -9" in " ".join(said.split()), said
    assert len(said.splitlines()) <= 50


TORCHRUN = """
W1128 torch/distributed/elastic/multiprocessing/api.py:1010] Sending process 102 closing signal SIGTERM
E1128 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: {first}) local_rank: 0 (pid: 101)
Failures:
[1]:
  time      : 2026-11-28_01:00:00
  host      : node
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 102)  (SIGKILL)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-28_01:00:00
  host      : node
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 101)
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("first", "said", "kind", "reason"),
    [
        (1, "bug: KeyError: 'x'\nstopped: maml: stopped", MetalearnError, "KeyError: 'x'"),
        (1, "stopped: maml: stopped\nerror: disk full\nbug: x", MetalearnError, "disk full"),
        (-11, "lost: one is gone\nstopped: maml: stopped", MetalearnError, "process 1 of 2 was killed by SIGSEGV: "),
        (-40, "bug: RuntimeError: of the transport", MetalearnError, "process 1 of 2 was killed by signal 40: "),
        (143, "stopped: maml: stopped", TrainingStoppedError, "maml: stopped"),
        (2, "bug: x\nusage: way 5000: too many", UsageError, "way 5000: too many"),
        (1, "lost: one is gone", MetalearnError, "a training process ended early: "),
    ],
)
def test_the_reason_is_that_of_the_process_that_ended_first(
    first: int, said: str, kind: type[Exception], reason: str
) -> None:
    """Whatever torchrun itself has ended, even by SIGKILL in the end, was not killed."""
    failure = _failure(f"{said}\n{TORCHRUN.format(first=first)}", 2)
    assert type(failure) is kind
    assert str(failure).startswith(reason)


@pytest.mark.slow
def test_what_the_processes_report_is_in_the_log_of_a_step_that_nobody_follows(
    small_dataset: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, ON_STDERR)
    assert train_in_processes(order_of(small_dataset, tmp_path, 40))["train_episodes"] == 40
    assert "maml: 100 %: " in capfd.readouterr().err


@pytest.mark.slow
def test_what_a_process_knows_is_the_reason_and_nothing_else_is_said(
    small_dataset: EpisodeDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order = order_of(small_dataset, tmp_path, 40).model_copy(update={"dataset": str(tmp_path / "none")})
    with pytest.raises(MetalearnError, match="none"):
        train_in_processes(order)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_is_asked_for_in_a_wrong_way_is_so_with_several_processes_too(
    small_dataset: EpisodeDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order = order_of(small_dataset, tmp_path, 40)
    with pytest.raises(UsageError, match="way 7"):
        train_in_processes(order.model_copy(update={"request": order.request.model_copy(update={"train_way": 7})}))
    assert capfd.readouterr().err == ""
