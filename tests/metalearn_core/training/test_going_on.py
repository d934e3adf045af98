"""A training that is cut off, and what is left of it: killed, ended, its disk full, its bucket away."""

import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors.torch import load_file

from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.errors import MetalearnError, StorageError, one_line
from metalearn_core.learners import LEARNERS
from metalearn_core.learners.optimization.maml import MAML
from metalearn_core.storage import objects
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place
from metalearn_core.training import loop
from metalearn_core.training.checkpoint import KEPT, Checkpoints
from metalearn_core.training.loop import fit
from metalearn_core.training.termination import StopRequested, TrainingStoppedError, sigterm_flag
from metalearn_core.training.world import World
from tests.fault_proxy import FaultProxy
from tests.metalearn_core.training.runs import content, plan, spec, start

every_learner = pytest.mark.parametrize("name", sorted(LEARNERS))


@every_learner
def test_a_run_cut_off_at_any_step_ends_with_the_same_bytes(dataset, name, tmp_path):
    whole = fit(spec(name), dataset, plan())

    class Killed(BaseException):
        pass

    for cut in (1, 2):
        calls = []

        def die(metrics, episodes, calls=calls, cut=cut):
            if "validation/accuracy" in metrics:
                calls.append(episodes)
                if len(calls) == cut:
                    raise Killed

        folder = tmp_path / str(cut)
        with pytest.raises(Killed):
            fit(spec(name), dataset, plan(checkpoint_seconds=0), checkpoint_dir=folder, on_metrics=die)
        resumed = fit(spec(name), dataset, plan(checkpoint_seconds=0), checkpoint_dir=folder)
        assert content(resumed) == content(whole)
        assert [record["episodes"] for record in resumed.history] == [record["episodes"] for record in whole.history]


def wait_for_checkpoints(folder, process, least):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if max((int(path.stem) for path in folder.glob("*.json")), default=0) >= least:
            return
        time.sleep(0.005)
    raise AssertionError(process.stderr.read().decode())


def test_a_killed_process_started_again_ends_with_the_same_bytes(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors", 120)
    assert whole.wait(120) == 0
    for least in (3, 14):
        process = start(tmp_path / "cut", tmp_path / "cut.safetensors", 120)
        wait_for_checkpoints(tmp_path / "cut", process, least)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    assert start(tmp_path / "cut", tmp_path / "cut.safetensors", 120).wait(120) == 0
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_process_killed_on_one_machine_is_gone_on_with_on_another(tmp_path, bucket, monkeypatch):
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors", 60)
    assert whole.wait(120) == 0
    for number, least in enumerate((3, 9)):
        process = start(f"{bucket}/cut", tmp_path / "cut.safetensors", 60)
        wait_for_checkpoints(Place.at(f"{bucket}/cut").folder, process, least)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / f"machine{number}"))
    assert start(f"{bucket}/cut", tmp_path / "cut.safetensors", 60).wait(120) == 0
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_bucket_that_is_away_costs_a_checkpoint_not_the_training(dataset, bucket, monkeypatch):
    tried = []

    def away(_, progress, *__, **___):
        tried.append(progress.episodes)
        raise StorageError("s3://bucket: away")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", away)
        with pytest.raises(StorageError, match="away"):  # the last one is needed
            fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=f"{bucket}/run")
    assert tried[0] < 12
    assert tried[-1] == 12, "training went on to its end"
    resumed = fit(spec("maml"), dataset, plan(), checkpoint_dir=f"{bucket}/run")
    assert content(resumed) == content(fit(spec("maml"), dataset, plan()))


class PausedProxy(FaultProxy):
    """Stands for a store that takes connections and does not answer, as long as `open` is not set."""

    def __init__(self, upstream):
        super().__init__(upstream, rate=0)
        self.open = threading.Event()
        self.open.set()

    def _draw(self):
        self.open.wait()
        return super()._draw()


def test_a_bucket_that_hangs_stops_neither_training_nor_its_end(tmp_path, bucket, s3_store, monkeypatch):
    with PausedProxy(s3_store.store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        objects.client.cache_clear()
        folder = Place.at(f"{bucket}/run").folder
        process = start(f"{bucket}/run", tmp_path / "out.safetensors", 100_000)
        wait_for_checkpoints(folder, process, 3)
        proxy.open.clear()
        reached = max(int(path.stem) for path in folder.glob("*.json"))
        wait_for_checkpoints(folder, process, reached + 10)
        process.terminate()
        assert process.wait(10) == 1
        error = process.stderr.read().decode().splitlines()[-1]
        assert re.search(r"stopped by SIGTERM after \d+ .* did not take the last checkpoint: on this machine", error)
        assert len(list(folder.glob("*.json"))) <= KEPT + 1, "the last ones, and the one that was being sent"
        last = max(int(path.stem) for path in folder.glob("*.json"))
        proxy.open.set()
        process = start(f"{bucket}/run", tmp_path / "out.safetensors", 100_000)
        wait_for_checkpoints(folder, process, last + 1)
        process.terminate()
        assert process.wait(10) == 1
        assert "the same command goes on from s3://" in process.stderr.read().decode()
        assert max(found.name for found in Prefix.parse(f"{bucket}/run").objects()) > f"{last:012d}"


def test_sigterm_writes_a_checkpoint_and_ends(tmp_path):
    process = start(tmp_path / "run", tmp_path / "out.safetensors", 100_000)
    wait_for_checkpoints(tmp_path / "run", process, 2)
    process.terminate()
    assert process.wait(10) == 1
    error = process.stderr.read().decode().splitlines()[-1]
    assert "TrainingStoppedError: maml: stopped by SIGTERM after" in error
    assert "the same command goes on" in error


def test_sigterm_inside_validation_is_heeded_and_the_handler_put_back(dataset, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    batch, ended, begun = EpisodeSampler.gather, [], []

    def terminate(sampler, index):
        if sampler.split == "validation":
            begun.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
            while time.monotonic() < begun[0] + 120:
                index.class_id.sum()
        return batch(sampler, index)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeSampler, "gather", terminate)
        with pytest.raises(TrainingStoppedError) as stopped:
            fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, on_metrics=lambda m, _: ended.append(m))
    assert stopped.value.exit_status == 143
    assert time.monotonic() < begun[0] + 60
    assert not any("validation/accuracy" in metrics for metrics in ended), "the validation was not finished"
    assert signal.getsignal(signal.SIGTERM) == before
    assert content(fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path)) == content(
        fit(spec("maml"), dataset, plan())
    )


class Stopped(World):
    """One process, to which SIGTERM has come."""

    def any(self, flag):
        return True


class Second(World):
    """The second of two processes: it hears what the first one says, and that SIGTERM has come."""

    def __init__(self, said):
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "said", said)

    def agree(self, *values):
        return values

    def wait(self):
        pass

    def any(self, flag):
        return True

    def tell(self, content):
        return self.said.pop(0)


def test_of_several_processes_only_the_first_knows_where_the_last_checkpoint_is(dataset, tmp_path):
    nothing_to_resume = [b"", b""]
    second = Second([*nothing_to_resume, b"; the bucket did not take it"])
    with pytest.raises(TrainingStoppedError, match=r"after 0 training episodes; the bucket did not take it$"):
        fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, world=second)
    assert second.said == []


@pytest.mark.parametrize("threads", [1, 2])
def test_sigterm_inside_a_step_is_heeded_and_the_step_taken_again(dataset, tmp_path, monkeypatch, threads):
    train, begun = MAML.train_episodes, []

    def terminate(learner, episodes):
        begun.append(len(episodes))
        if len(begun) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(learner, episodes)

    chunked = {"chunk": 1, "threads": threads, "episodes": 16}
    with monkeypatch.context() as patch:
        patch.setattr(MAML, "train_episodes", terminate)
        with pytest.raises(TrainingStoppedError, match="after 8 training episodes: the same command goes on"):
            fit(spec("maml", meta_batch=8), dataset, plan(**chunked), checkpoint_dir=tmp_path)
    assert len(begun) < 16
    resumed = fit(spec("maml", meta_batch=8), dataset, plan(**chunked), checkpoint_dir=tmp_path)
    assert content(resumed) == content(fit(spec("maml", meta_batch=8), dataset, plan(**chunked)))


def test_sigterm_inside_a_long_chunk_does_not_wait_for_its_end(dataset, tmp_path, monkeypatch):
    train, begun = MAML.train_episodes, []

    def terminate(learner, episodes):
        begun.append(time.monotonic())
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            while time.monotonic() < begun[-1] + 120:
                episodes.support_x.sum()
        return train(learner, episodes)

    whole = {"chunk": 8, "episodes": 32}
    with monkeypatch.context() as patch:
        patch.setattr(MAML, "train_episodes", terminate)
        with pytest.raises(TrainingStoppedError, match="after 16 training episodes: the same command goes on"):
            fit(spec("maml", meta_batch=8), dataset, plan(**whole), checkpoint_dir=tmp_path)
    assert time.monotonic() < begun[-1] + 60
    resumed = fit(spec("maml", meta_batch=8), dataset, plan(**whole), checkpoint_dir=tmp_path)
    assert content(resumed) == content(fit(spec("maml", meta_batch=8), dataset, plan(**whole)))


A_THREAD_THAT_GOES_ON = """
import os, signal, sys, threading, time
from metalearn_core.errors import one_line
from metalearn_core.learners.optimization.maml import MAML
from metalearn_core.training.loop import fit
from metalearn_core.training.termination import TrainingStoppedError, end_process
from tests.metalearn_core.training.conftest import tiny_dataset
from tests.metalearn_core.training.runs import plan, spec

train = MAML.train_episodes
def terminate(learner, episodes):
    if threading.current_thread() is not threading.main_thread():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    return train(learner, episodes)

MAML.train_episodes = terminate
try:
    fit(spec("maml", meta_batch=8), tiny_dataset(), plan(chunk=1, threads=2), checkpoint_dir=sys.argv[1])
except TrainingStoppedError as error:
    print(one_line(error))
    end_process(error.exit_status)
"""


def test_a_process_that_has_said_why_it_ends_does_not_wait_for_a_thread_that_computes(tmp_path):
    command = [sys.executable, "-c", A_THREAD_THAT_GOES_ON, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (143, "")
    assert "stopped by SIGTERM after 0 training episodes" in ended.stdout


def test_sigterm_inside_what_cannot_be_done_again_is_a_flag_alone():
    with sigterm_flag() as stop:
        assert not stop.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        with pytest.raises(StopRequested), stop.leaving_at_once():
            pytest.fail("it has come before")


def test_sigterm_inside_what_can_be_done_again_leaves_it_once():
    with sigterm_flag() as stop, pytest.raises(StopRequested), stop.leaving_at_once():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # does not disturb the way out
            left = True
    assert left
    assert stop.is_set()


def test_a_restart_that_is_stopped_goes_on_without_another_restart(dataset, tmp_path):
    with pytest.raises(TrainingStoppedError, match="the same command without --restart goes on from"):
        fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, restart=True, world=Stopped())


def test_a_run_that_goes_on_says_from_where(dataset, tmp_path, monkeypatch):
    def stop(metrics, episodes):
        if "validation/accuracy" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path / "run", on_metrics=stop)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path / "run")
    told = (tmp_path / "events.jsonl").read_text()
    assert re.search(r"maml: goes on from training episode [1-9]\d* of its checkpoint", told)


def test_a_finished_run_returns_at_once(dataset, tmp_path):
    first = fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path)
    called = []
    again = fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, on_metrics=lambda *_: called.append(1))
    assert content(again) == content(first)
    assert (again.seconds, again.episodes, again.history) == (first.seconds, first.episodes, first.history)
    assert (again.best_validation, called) == (first.best_validation, [])


def test_another_plan_or_dataset_is_refused_and_restart_begins_anew(dataset, make_dataset, tmp_path):
    first = fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path)
    with pytest.raises(MetalearnError, match="another learner, option, plan or dataset"):
        fit(spec("maml"), dataset, plan(seed=3), checkpoint_dir=tmp_path)
    with pytest.raises(MetalearnError, match="another learner, option, plan or dataset"):
        fit(spec("maml"), make_dataset(name="other"), plan(), checkpoint_dir=tmp_path)
    other = fit(spec("maml"), dataset, plan(seed=3), checkpoint_dir=tmp_path, restart=True)
    assert content(other) != content(first)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(dataset, tmp_path):
    def stop(metrics, episodes):
        if "validation/accuracy" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path, on_metrics=stop)
    newest = max(tmp_path.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path)
    assert content(resumed) == content(fit(spec("maml"), dataset, plan()))


def test_a_full_disk_is_named_and_the_same_command_goes_on(dataset, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError) as caught:
            fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(tmp_path / "run") in one_line(caught.value)
    assert not list((tmp_path / "run").glob("*.json"))
    resumed = fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path / "run")
    assert content(resumed) == content(fit(spec("maml"), dataset, plan()))


def fill_the_disk(monkeypatch, *full):
    """Have the checkpoints of these numbers, from 0, find a full disk."""
    save, tried = Checkpoints.save, []

    def saved(checkpoints, *arguments, **options):
        tried.append(arguments)
        if len(tried) - 1 in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoints.place))
        return save(checkpoints, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", saved)
    return tried


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_not_the_training(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    many = plan(episodes=40, checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        fill_the_disk(patch, 1, 2, 4, 5)
        ended = fit(spec("maml"), dataset, many, checkpoint_dir=tmp_path / "run")
    assert content(ended) == content(fit(spec("maml"), dataset, many))
    told = (tmp_path / "events.jsonl").read_text()
    assert len(re.findall("a checkpoint was not kept, training goes on: .*no space left on device", told)) == 4
    with monkeypatch.context() as patch:
        tried = fill_the_disk(patch, 1, 3, 4, 5)
        with pytest.raises(OSError, match="No space left"):
            fit(spec("maml"), dataset, many, checkpoint_dir=tmp_path / "other")
    assert len(tried) == 6


def test_sigterm_with_a_full_disk_is_an_orderly_end(dataset, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch, 0)
    with pytest.raises(TrainingStoppedError) as stopped:
        fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, world=Stopped())
    assert str(stopped.value).startswith(
        "maml: stopped by SIGTERM after 0 training episodes; the last checkpoint could"
    )
    assert f"({tmp_path}: no space left on device): the same command goes on" in str(stopped.value)


def test_a_run_that_diverges_keeps_the_checkpoints_of_the_steps_before(dataset, tmp_path, monkeypatch):
    rates = iter([1e-3] * 6)
    monkeypatch.setattr(loop, "learning_rate", lambda *_: next(rates, math.inf))
    with pytest.raises(MetalearnError, match=r"diverged at step 7 .*: weights that are no numbers: try"):
        fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    kept = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    assert len(kept) == 2
    assert all(bool(value.isfinite().all()) for tensors in kept for value in tensors.values())


def test_a_chunk_that_is_asked_for_counts_when_a_run_goes_on(dataset, tmp_path):
    with pytest.raises(MetalearnError, match="diverged"), pytest.MonkeyPatch.context() as patch:
        rates = iter([1e-3] * 4)
        patch.setattr(loop, "learning_rate", lambda *_: next(rates, math.inf))
        fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0, chunk=1), checkpoint_dir=tmp_path)
    kept = json.loads(sorted(tmp_path.glob("*.json"))[-1].read_text())["progress"]
    assert kept["engine"]["chunks"] == 4, "of as many tasks a step"
