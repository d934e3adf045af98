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
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.errors import MetalearnError, StorageError, UsageError, one_line
from metalearn_core.evaluation.scoring import evaluate_episodes
from metalearn_core.learners import LEARNERS, LearnerSpec
from metalearn_core.storage import objects
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place
from metalearn_core.training import engine, loop
from metalearn_core.training.checkpoint import KEPT, Checkpoints
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.loop import VALIDATION_SEED, TrainingStoppedError, fit
from metalearn_core.training.plan import TrainingPlan
from tests.fault_proxy import FaultProxy

HERE = Path(__file__).parent
every_learner = pytest.mark.parametrize("name", sorted(LEARNERS))


def spec(name, **options):
    return LearnerSpec(learner=name, options=options, backbone_options={"width": 8, "blocks": 3})


def plan(**values):
    base = {"way": 4, "shot": 1, "query": 3, "episodes": 12, "validations": 2, "validation_episodes": 20}
    return TrainingPlan(**{**base, **values})


def content(result):
    return save({name: value.contiguous() for name, value in result.learner.state_dict().items()})


@pytest.mark.parametrize(
    ("name", "episodes"),
    [("maml", 200), ("protonet", 60), ("transfer", 60), ("matchingnet", 60), ("relationnet", 120), ("r2d2", 60)],
)
def test_training_beats_the_untrained_learner(dataset, name, episodes):
    once = {"validations": 1, "validation_episodes": 100}
    result = fit(spec(name, learning_rate=0.01), dataset, plan(episodes=episodes, **once))
    start = fit(spec(name, learning_rate=1e-12), dataset, plan(episodes=1, **once))
    assert result.best_validation > start.best_validation + 0.04
    assert not result.learner.training
    assert result.episodes == episodes


@every_learner
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_same_run_ends_with_the_same_bytes(dataset, name, precision):
    results = [fit(spec(name), dataset, plan(precision=precision)) for _ in range(2)]
    assert content(results[0]) == content(results[1])
    assert content(fit(spec(name), dataset, plan(precision=precision, seed=1))) != content(results[0])


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


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import tiny_dataset
from safetensors.torch import save_file
from metalearn_core.learners import LearnerSpec
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan
spec = LearnerSpec(learner="maml", backbone_options={{"width": 8, "blocks": 3}})
plan = TrainingPlan(way=4, shot=1, query=3, episodes={episodes}, validations=3, validation_episodes=10,
                    checkpoint_seconds=0)
result = fit(spec, tiny_dataset(), plan, checkpoint_dir=sys.argv[1])
save_file(result.learner.state_dict(), sys.argv[2])
"""


def start(folder, out, episodes):
    script = SCRIPT.format(here=str(HERE), episodes=episodes)
    return subprocess.Popen([sys.executable, "-c", script, str(folder), str(out)], stderr=subprocess.PIPE)


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
    def away(*_, **__):
        raise StorageError("s3://bucket: away")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", away)
        with pytest.raises(StorageError, match="away"):  # the last one is needed
            fit(spec("maml"), dataset, plan(checkpoint_seconds=0), checkpoint_dir=f"{bucket}/run")
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


def test_a_store_larger_than_memory_is_drawn_ahead_and_gives_the_same_weights(small_dataset, tmp_path, monkeypatch):
    mapped = EpisodeDataset.open(small_dataset.folder, cache=tmp_path, max_memory_bytes=1)
    assert mapped.mapped
    threads, gather = set(), EpisodeSampler.gather

    def noted(sampler, index):
        threads.add((sampler.split, threading.current_thread() is threading.main_thread()))
        return gather(sampler, index)

    monkeypatch.setattr(EpisodeSampler, "gather", noted)
    fit(spec("maml"), mapped, plan())
    assert ("train", False) in threads
    assert content(fit(spec("maml"), mapped, plan())) == content(fit(spec("maml"), small_dataset, plan()))


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
    batch, ended = EpisodeSampler.gather, []

    def terminate(sampler, index):
        if sampler.split == "validation":
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(sampler, index)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeSampler, "gather", terminate)
        with pytest.raises(TrainingStoppedError) as stopped:
            fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path, on_metrics=lambda m, _: ended.append(m))
    assert stopped.value.exit_status == 143
    assert not any("validation/accuracy" in metrics for metrics in ended), "the validation was not finished"
    assert signal.getsignal(signal.SIGTERM) == before
    assert content(fit(spec("maml"), dataset, plan(), checkpoint_dir=tmp_path)) == content(
        fit(spec("maml"), dataset, plan())
    )


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


def test_a_run_by_the_clock_ends_in_time_and_counts_what_it_spent(dataset, tmp_path):
    started = time.monotonic()
    result = fit(spec("maml"), dataset, plan(episodes=None, seconds=2), checkpoint_dir=tmp_path)
    assert 1 < result.seconds <= 3
    assert time.monotonic() - started < 5
    assert result.history[-1]["episodes"] == result.episodes > 0
    assert result.history[-1]["validation/accuracy"] <= result.best_validation


def test_a_validation_that_takes_too_much_of_the_time_is_put_off_until_the_end(dataset, monkeypatch, tmp_path):
    gather = EpisodeSampler.gather

    def slow(sampler, index):
        if sampler.split == "validation":
            time.sleep(0.05)
        return gather(sampler, index)

    monkeypatch.setattr(EpisodeSampler, "gather", slow)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    limited = plan(episodes=None, seconds=3, validations=10, validation_episodes=400, threads=1)
    monkeypatch.setattr("metalearn_core.evaluation.scoring.available_cores", lambda: 1)
    result = fit(spec("maml"), dataset, limited)
    assert [record["episodes"] for record in result.history] == [result.episodes]
    assert result.seconds < 5.5, "half of the time, and a validation of some 2.5 seconds"
    told = (tmp_path / "events.jsonl").read_text()
    assert re.search(r"maml: a validation takes about \d+ s of 3: there is one, at the end", told)


def test_it_stops_when_validation_no_longer_improves(dataset):
    result = fit(spec("protonet", learning_rate=1e-12), dataset, plan(episodes=60, validations=30, patience=2))
    assert result.episodes < 60
    assert len(result.history) == result.episodes / 2


def test_the_best_weights_are_kept(dataset, monkeypatch):
    monkeypatch.setattr(
        loop, "learning_rate", lambda _start, _schedule, share, _halvings: 0.01 if share < 0.5 else 1000.0
    )
    result = fit(spec("protonet"), dataset, plan(episodes=24, validations=6))
    accuracies = [record["validation/accuracy"] for record in result.history]
    assert result.best_validation == max(accuracies) > accuracies[-1]
    validation = EpisodeSampler(dataset, "validation", EpisodeShape(4, 1, 3), seed=VALIDATION_SEED)
    scores = evaluate_episodes(result.learner, validation, plan().validation_episodes)
    assert scores.accuracy.mean() == pytest.approx(result.best_validation)


def test_without_validations_the_last_weights_count(dataset):
    result = fit(spec("maml"), dataset, plan(validations=0))
    assert math.isnan(result.best_validation)
    assert result.history == []


def test_a_loss_that_is_no_number_stops_the_run_with_what_to_try(dataset, tmp_path):
    wild = spec("maml", learning_rate=1e30, schedule="constant", inner_lr=1e30)
    with pytest.raises(
        MetalearnError, match=r"maml: training diverged at step \d+ .* smaller maml.learning_rate"
    ) as error:
        fit(wild, dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert "inner_lr" in str(error.value)


def test_a_run_that_diverges_keeps_the_checkpoint_of_a_step_before(dataset, tmp_path, monkeypatch):
    rates = iter([1e-3] * 6)
    monkeypatch.setattr(loop, "learning_rate", lambda *_: next(rates, math.inf))
    with pytest.raises(MetalearnError, match="training diverged at step 8 "):
        fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    kept = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    assert len(kept) == 2
    assert all(bool(value.isfinite().all()) for value in kept[0].values())


def test_a_chunk_that_is_asked_for_counts_when_a_run_goes_on(dataset, tmp_path):
    with pytest.raises(MetalearnError, match="diverged"), pytest.MonkeyPatch.context() as patch:
        rates = iter([1e-3] * 4)
        patch.setattr(loop, "learning_rate", lambda *_: next(rates, math.inf))
        fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    for newest in (sorted(tmp_path.glob("*.json"))[-1], sorted(tmp_path.glob("*.safetensors"))[-1]):
        newest.unlink()  # of the step that diverged
    fit(spec("maml"), dataset, plan(episodes=200, checkpoint_seconds=0, chunk=1), checkpoint_dir=tmp_path)
    kept = json.loads(sorted(tmp_path.glob("*.json"))[-1].read_text())["progress"]
    assert kept["engine"]["chunks"] == 4, "of as many tasks a step"


def test_a_gradient_is_clipped_to_its_norm(dataset):
    free, clipped, loose = (
        fit(spec("maml", gradient_clip=clip, meta_batch=2), dataset, plan(episodes=2, validations=0))
        for clip in (None, 1e-9, 1e9)
    )
    assert content(free) == content(loose)
    assert content(free) != content(clipped)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"way": 6}, ["validation", "6", "5"]),
        ({"shot": 5}, ["6", "examples"]),
        ({"train_way": 33}, ["train", "33", "32"]),
        ({"train_query": 6}, ["train", "6", "7"]),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_before_anything_is_done(dataset, tmp_path, values, words):
    with pytest.raises(UsageError) as error:
        fit(spec("protonet"), dataset, plan(**values), checkpoint_dir=tmp_path / "run")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "run").exists()


def test_metrics_come_with_their_names(dataset):
    got = []
    fit(spec("protonet"), dataset, plan(), on_metrics=lambda metrics, episodes: got.append((metrics, episodes)))
    last, episodes = got[-1]
    assert episodes == 12
    assert set(last) >= {
        "train/loss",
        "train/accuracy",
        "validation/accuracy",
        "validation/ci95",
        "learning_rate",
        "seconds",
        "episodes_per_second",
    }
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))).all() for metrics, _ in got)


class Recorded:
    """Stands for a CUDA graph: it computes anew from the tensors that the first call read, whatever comes later."""

    def __init__(self, compute):
        self.compute, self.replayed = compute, 0
        recorded.append(self)

    def replay(self):
        self.replayed += 1
        return self.compute()


recorded = []


@pytest.mark.parametrize("name", ["maml", "protonet", "transfer"])
def test_a_step_that_is_replayed_reads_the_episodes_of_each_step(dataset, name, monkeypatch):
    whole = {"maml": plan(episodes=35), "protonet": plan(), "transfer": plan()}[name]  # maml: a short step at the end
    choose = EngineChoices.choose
    monkeypatch.setattr(
        EngineChoices, "choose", lambda *a, **k: choose(*a, **k).model_copy(update={"chunks": 1, "threads": 1})
    )
    wanted = content(fit(spec(name), dataset, whole))
    monkeypatch.setattr(
        EngineChoices,
        "choose",
        lambda *a, **k: choose(*a, **k).model_copy(update={"chunks": 1, "threads": 1, "graph": True}),
    )
    monkeypatch.setattr(engine, "StepGraph", Recorded)
    recorded.clear()
    assert content(fit(spec(name), dataset, whole)) == wanted
    assert len(recorded) == (2 if name == "maml" else 1)
    assert sum(graph.replayed for graph in recorded) == (9 if name == "maml" else 12)


def test_a_step_that_cannot_be_recorded_is_run_as_it_is(dataset, monkeypatch):
    def refuse(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    choose = EngineChoices.choose
    wanted = content(fit(spec("maml"), dataset, plan()))
    monkeypatch.setattr(EngineChoices, "choose", lambda *a, **k: choose(*a, **k).model_copy(update={"graph": True}))
    monkeypatch.setattr(engine, "StepGraph", refuse)
    assert content(fit(spec("maml"), dataset, plan())) == wanted
