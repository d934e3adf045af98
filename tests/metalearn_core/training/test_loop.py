"""Meta-training: what is learned, validated, kept and reported."""

import math
import re
import threading
import time
from dataclasses import replace

import pytest
import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.evaluation.scoring import Scorer, evaluate_episodes
from metalearn_core.learners import LEARNERS
from metalearn_core.learners.optimization.maml import MAML
from metalearn_core.training import engine, loop
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.loop import VALIDATION_SEED, fit
from tests.metalearn_core.training.runs import content, plan, spec

every_learner = pytest.mark.parametrize("name", sorted(LEARNERS))


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


def test_the_episodes_of_a_step_are_drawn_chunk_by_chunk(dataset, monkeypatch):
    gather, train, happened = EpisodeSampler.gather, MAML.train_episodes, []

    def drawn(sampler, index):
        if sampler.split == "train":
            happened.append(("drawn", len(index)))
        return gather(sampler, index)

    def trained(learner, episodes):
        happened.append(("trained", len(episodes)))
        return train(learner, episodes)

    monkeypatch.setattr(EpisodeSampler, "gather", drawn)
    monkeypatch.setattr(MAML, "train_episodes", trained)
    fit(spec("maml", meta_batch=8), dataset, plan(episodes=16, chunk=2, threads=1))
    assert happened == [("drawn", 2), ("trained", 2)] * 8


def test_of_a_store_larger_than_memory_each_chunk_is_drawn_once(small_dataset, tmp_path, monkeypatch):
    mapped = EpisodeDataset.open(small_dataset.folder, cache=tmp_path, max_memory_bytes=1)
    gather, drawn = EpisodeSampler.gather, []

    def noted(sampler, index):
        if sampler.split == "train":
            drawn.append(len(index))
        return gather(sampler, index)

    monkeypatch.setattr(EpisodeSampler, "gather", noted)
    fit(spec("maml", meta_batch=8), mapped, plan(episodes=16, chunk=3, threads=1))
    assert drawn[:6] == [3, 3, 2, 3, 3, 2]
    assert len(drawn) <= 7, "one more is drawn ahead when training ends"


def test_a_run_by_the_clock_ends_in_time_and_counts_what_it_spent(dataset, tmp_path):
    started = time.monotonic()
    result = fit(spec("maml"), dataset, plan(episodes=None, seconds=2), checkpoint_dir=tmp_path)
    assert 1 < result.seconds < 10, "it ends soon after two seconds, also on a busy machine"
    assert time.monotonic() - started < 30
    assert result.history[-1]["episodes"] == result.episodes > 0
    assert result.history[-1]["validation/accuracy"] <= result.best_validation


def test_a_validation_that_takes_too_much_of_the_time_is_put_off_until_the_end(dataset, monkeypatch, tmp_path):
    gather, asked = EpisodeSampler.gather, []

    def slow(sampler, index):
        if sampler.split == "validation":
            asked.append(len(index.class_id))
            time.sleep(0.05)
        return gather(sampler, index)

    monkeypatch.setattr(EpisodeSampler, "gather", slow)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    limited = plan(episodes=None, seconds=3, validations=10, validation_episodes=400, threads=1)
    monkeypatch.setattr("metalearn_core.evaluation.scoring.available_cores", lambda: 1)
    result = fit(spec("maml"), dataset, limited)
    assert [record["episodes"] for record in result.history] == [result.episodes]
    assert 400 < sum(asked) < 800, "the first was left before its end, the last is whole"
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


@pytest.mark.parametrize(
    ("name", "options", "tried"),
    [
        ("maml", {}, "maml.eval_steps, maml.inner_lr or maml.learning_rate"),
        ("protonet", {}, "protonet.learning_rate"),
        ("relationnet", {"pretrain": 0.9}, "relationnet.pretrain_learning_rate"),
    ],
)
def test_answers_in_validation_that_are_no_numbers_are_said_with_what_to_try(
    dataset, tmp_path, monkeypatch, name, options, tried
):
    gather = EpisodeSampler.gather

    def overflowing(sampler, index):
        batch = gather(sampler, index)
        return batch if sampler.split == "train" else replace(batch, query_x=batch.query_x * torch.inf)

    monkeypatch.setattr(Scorer, "_by_feature", Scorer._by_episode)
    monkeypatch.setattr(EpisodeSampler, "gather", overflowing)
    with pytest.raises(MetalearnError) as error:
        fit(spec(name, meta_batch=2, **options), dataset, plan(checkpoint_seconds=0), checkpoint_dir=tmp_path)
    assert str(error.value) == (
        f"{name}: its answers in validation episode 0, after training step {6 if options else 3} (episode 6), "
        f"are no numbers: try a smaller {tried}"
    )
    assert list(tmp_path.glob("*.json")), "what was trained is kept"


@pytest.mark.parametrize(
    ("name", "options", "tried"),
    [
        ("maml", {}, "episodes: take a smaller --way, --train-query or backbone.width"),
        ("protonet", {}, "episodes: take a smaller --train-way, --train-query or backbone.width"),
        ("transfer", {}, "examples: take a smaller transfer.batch_size or backbone.width"),
        ("relationnet", {"pretrain": 0.5}, "examples: take a smaller relationnet.pretrain_batch_size or back"),
    ],
)
def test_where_memory_does_not_hold_a_step_the_learners_options_are_named(dataset, monkeypatch, name, options, tried):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(MetalearnError, match=f"{name}: the GPU's memory does not hold its training {tried}"):
        fit(spec(name, **options), dataset, plan())


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
    """Stands for a CUDA graph: it computes anew from the tensors that the first call read, whatever comes later.

    What it gives is always in the same tensors.
    """

    def __init__(self, compute, beside):
        self.compute, self.result, self.replayed = compute, compute(), 0
        assert beside is (recorded[0] if recorded else None), "they use the memory of the first one"
        recorded.append(self)

    def replay(self):
        self.replayed += 1
        anew = self.compute()
        with torch.no_grad():
            for held, value in zip(flat(self.result), flat(anew), strict=True):
                held.copy_(value)
        return self.result


def flat(result):
    gradients, outcome = result
    return [*gradients, outcome.losses, outcome.accuracies, *outcome.statistics.values()]


recorded = []
choose = EngineChoices.choose


def choose_chunks(monkeypatch, chunks, **values):
    """Have the tasks of a step be so many chunks, whatever cores there are."""

    def chosen(*args, **kwargs):
        return choose(*args, **kwargs).model_copy(update={"chunks": chunks, "threads": 1, **values})

    monkeypatch.setattr(EngineChoices, "choose", chosen)


@pytest.mark.parametrize(
    ("name", "options", "episodes", "chunks", "graphs", "replays"),
    [
        ("maml", {}, 35, 1, 2, 9),  # of 4 episodes, and a short step at the end
        ("maml", {}, 35, 3, 2, 27),  # chunks of 2, 1 and 1 episodes
        ("protonet", {}, 12, 1, 1, 12),
        ("protonet", {"meta_batch": 4}, 12, 3, 2, 9),
        ("transfer", {}, 12, 1, 1, 12),
    ],
)
def test_a_step_that_is_replayed_reads_the_episodes_of_each_step(
    dataset, name, options, episodes, chunks, graphs, replays, monkeypatch
):
    choose_chunks(monkeypatch, chunks)
    wanted = content(fit(spec(name, **options), dataset, plan(episodes=episodes)))
    choose_chunks(monkeypatch, chunks, graph=True)
    monkeypatch.setattr(engine, "StepGraph", Recorded)
    recorded.clear()
    assert content(fit(spec(name, **options), dataset, plan(episodes=episodes))) == wanted
    assert len(recorded) == graphs
    assert sum(graph.replayed for graph in recorded) == replays


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_step_that_cannot_be_recorded_is_run_as_it_is(dataset, monkeypatch, tmp_path, chunks):
    refused = []

    def refuse(compute, _):
        refused.append(compute)
        raise RuntimeError("operation not permitted when stream is capturing")

    choose_chunks(monkeypatch, chunks)
    wanted = content(fit(spec("maml"), dataset, plan()))
    choose_chunks(monkeypatch, chunks, graph=True)
    monkeypatch.setattr(engine, "StepGraph", refuse)
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    assert content(fit(spec("maml"), dataset, plan())) == wanted
    assert len(refused) == 1, "it is tried once"
    told = (tmp_path / "events.jsonl").read_text()
    assert told.count("a step cannot be a CUDA graph, and is slower for it: operation not permitted") == 1
