import subprocess
import sys

import pytest
import torch
from torch.backends import cuda, cudnn

from metalearn_core.backbones.conv4 import Conv4
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.sinusoid import SinusoidSampler, SinusoidTasks
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.training.engine import Engine, EngineChoices
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.world import World

BY_GRADIENT = ["maml", "anil", "reptile", "metasgd", "mamlpp", "protomaml"]


def gradient(dataset, name, threads, tasks=5, precision="fp32", dtype=torch.float32, chunks=5):
    spec = LearnerSpec(learner=name, backbone_options={"width": 8, "blocks": 3})
    learner = make_learner(spec, dataset.spec, way=4, dtype=dtype).train()
    batch = EpisodeSampler(dataset, "train", EpisodeShape(4, 1, 3), seed=0).batch(0, tasks)
    with Engine(EngineChoices(threads=threads, precision=precision, chunks=chunks)) as engine:
        result = engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), tasks)
    return learner, batch, result


@pytest.mark.parametrize("name", [*BY_GRADIENT, "protonet"])
def test_the_gradient_does_not_depend_on_the_number_of_threads(dataset, name):
    _, _, one = gradient(dataset, name, 1)
    for threads in (2, 3):
        _, _, other = gradient(dataset, name, threads)
        assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))
        assert (one.loss, one.accuracy) == (other.loss, other.accuracy)
        assert all(torch.equal(one.statistics[key], other.statistics[key]) for key in one.statistics)


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_it_is_the_gradient_of_the_mean_loss(dataset, name):
    learner, batch, result = gradient(dataset, name, 2, dtype=torch.float64)
    loss = learner.train_episodes(batch).losses.mean()
    expected = torch.autograd.grad(loss, list(learner.parameters()))
    torch.testing.assert_close(list(result.gradients), list(expected))
    assert result.loss == pytest.approx(loss.item())


def test_a_failure_in_a_task_is_the_callers(dataset):
    learner, _, _ = gradient(dataset, "maml", 1)
    with Engine(EngineChoices(threads=2, precision="fp32", chunks=3)) as engine, pytest.raises(ZeroDivisionError):
        engine.gradient(learner, lambda task: 1 / 0, 3)


class One(World):
    """One process of several, which gets its own vectors in the place of those of the others."""

    def gather(self, own, tasks):
        found = list(own)
        for number in range(tasks):
            yield found[number // self.size % len(found)]


def test_each_process_draws_its_own_share_of_a_step(dataset):
    learner, batch, _ = gradient(dataset, "maml", 1)
    for rank, own in [(0, [(0, 2), (4, 5)]), (1, [(2, 4), (5, 6)])]:
        drawn, expected = [], []

        def draw(chunk, following, drawn=drawn, expected=expected):
            drawn.append((chunk.start, chunk.stop))
            expected.append((following.start, following.stop))
            return batch[: chunk.stop - chunk.start]

        with Engine(EngineChoices(threads=1, precision="fp32", chunks=4), One(rank, 2)) as engine:
            engine.drawn_gradient(learner, draw, learner.train_episodes, 6)
        assert drawn == own
        assert expected == [own[1], (own[0][0] + 6, own[0][1] + 6)]


def test_where_memory_does_not_hold_a_chunk_chunks_are_halved(dataset):
    learner, batch, wanted = gradient(dataset, "maml", 1, tasks=6, dtype=torch.float64)

    def outcome(chunk):
        if chunk.stop - chunk.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learner.train_episodes(batch[chunk])

    with Engine(EngineChoices(threads=1, precision="fp32", chunks=1)) as engine:
        found = engine.gradient(learner, outcome, 6)
        assert engine.choices.chunks == 4
    torch.testing.assert_close(found.gradients, wanted.gradients)


def test_where_memory_does_not_hold_one_episode_it_is_said(dataset):
    learner, _, _ = gradient(dataset, "maml", 1)
    asked = []

    def outcome(chunk):
        asked.append(chunk.stop - chunk.start)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        Engine(EngineChoices(threads=1, precision="fp32", chunks=1)) as engine,
        pytest.raises(torch.OutOfMemoryError),
    ):
        engine.gradient(learner, outcome, 6)
    assert asked == [6, 3, 2, 1]


def test_a_gpu_that_is_not_there_is_said():
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1, device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device cuda: torch finds no GPU here"):
            EngineChoices.choose(plan)


def test_torch_keeps_its_number_of_threads(dataset):
    before = torch.get_num_threads()
    gradient(dataset, "maml", 3)
    assert torch.get_num_threads() == before


def precisions():
    return [setting.fp32_precision for setting in (cudnn.conv, cudnn.rnn, cuda.matmul)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp32_is_no_tf32_and_torch_gets_back_what_it_had(device):
    before = precisions()
    with Engine(EngineChoices(device=device, threads=0, precision="fp32", chunks=1)):
        assert precisions() == ["ieee"] * 3
    assert precisions() == before
    with Engine(EngineChoices(device=device, threads=0, precision="bf16", chunks=1)):
        assert precisions() == before


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_bf16_is_near_fp32(dataset, name):
    _, _, exact = gradient(dataset, name, 1, tasks=1)
    _, _, rounded = gradient(dataset, name, 1, tasks=1, precision="bf16")
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert all(value.dtype == torch.float32 for value in rounded.gradients)


@pytest.mark.parametrize(("processes", "tasks"), [(1, 8), (2, 8), (3, 8), (8, 8), (16, 8)])
def test_every_gpu_has_tasks_as_long_as_there_are_any_and_takes_its_own_at_once(monkeypatch, processes, tasks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    plan = TrainingPlan(way=5, shot=1, query=5, episodes=1, device="cuda")
    choices = EngineChoices.choose(plan, tasks, 4, processes)
    shares = [len(World(rank, processes).share(choices.chunks)) for rank in range(processes)]
    assert max(shares) == 1
    assert sum(shares) == min(processes, tasks)
    assert choices.graph


def test_a_gpu_records_its_chunks_however_many_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    plan = TrainingPlan(way=5, shot=1, query=5, episodes=1, device="cuda", chunk=2)
    choices = EngineChoices.choose(plan, 8, 4)
    assert (choices.chunks, choices.graph) == (4, True)
    assert not EngineChoices.choose(plan, 8, 4, varied=True).graph


def test_explicit_choices_are_taken():
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1, precision="fp32", threads=3, chunk=2)
    assert EngineChoices.choose(plan, tasks=7) == EngineChoices(threads=3, precision="fp32", chunks=4)


def test_the_threads_of_a_single_chunk_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr("metalearn_core.training.engine.available_cores", lambda: 4)
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1, precision="fp32", chunk=8)
    for processes in (1, 2, 4):
        choices = EngineChoices.choose(plan, 7, 2, processes)
        assert choices == EngineChoices(threads=4, precision="fp32", chunks=1)


def test_an_explicit_chunk_of_little_work_is_shared_by_all_cores(monkeypatch):
    monkeypatch.setattr("metalearn_core.training.engine.available_cores", lambda: 2)
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1, precision="fp32", chunk=4)
    assert EngineChoices.choose(plan, tasks=7, at_once=1000) == EngineChoices(threads=2, precision="fp32", chunks=2)


@pytest.mark.parametrize(
    ("tasks", "at_once", "cores", "chunks"),
    [(32, 3, 2, 12), (32, 8, 3, 6), (4, 8, 16, 4), (1, 1, 2, 1), (25, 1000, 16, 1), (25, 100, 2, 2)],
)
def test_chunks_fit_and_keep_every_core_busy(monkeypatch, tasks, at_once, cores, chunks):
    monkeypatch.setattr("metalearn_core.training.engine.available_cores", lambda: cores)
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1)
    for processes in (1, 2, 3):
        assert EngineChoices.choose(plan, tasks, at_once, processes).chunks == chunks


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float64, 1e-10) for name in [*BY_GRADIENT, "protonet"]),
        # Adam's first step is the sign of a gradient, and in fp32 rounding decides that of a small one.
        *((name, torch.float32, 1e-4) for name in [*BY_GRADIENT, "protonet"] if name != "reptile"),
    ],
)
def test_all_ways_to_cut_the_tasks_give_the_same_loss_and_gradients(dataset, name, dtype, tolerance):
    """By hand or by autograd, task by task or several at once, on one thread or more: against the plain loop."""
    learner, batch, _ = gradient(dataset, name, 1, tasks=7, dtype=dtype)
    parameters = list(learner.parameters())
    losses = [learner.train_episodes(batch[task : task + 1]).losses.mean() for task in range(7)]
    wanted = [
        torch.stack(parts).mean(0)
        for parts in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True)
    ]
    for threads, chunks in [(1, 1), (1, 3), (2, 3), (3, 7)]:
        _, _, found = gradient(dataset, name, threads, tasks=7, dtype=dtype, chunks=chunks)
        assert found.loss == pytest.approx(torch.stack(losses).mean().item(), rel=tolerance)
        for one, other in zip(found.gradients, wanted, strict=True):
            assert (one - other).norm() <= tolerance * other.norm() + 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("taped", [True, False])
@pytest.mark.parametrize("name", [name for name in BY_GRADIENT if name != "reptile"])
def test_a_gpus_way_to_take_all_tasks_at_once_gives_the_same_too(dataset, monkeypatch, name, taped, dtype, tolerance):
    """Convolutions in groups, and all queries' losses in one graph: here on a CPU, which has quicker ways."""
    learner, batch, wanted = gradient(dataset, name, 1, tasks=7, dtype=dtype, chunks=7)
    monkeypatch.setattr(learner.backbone, "taped", taped)
    alone, together = Conv4.embed_groups, []

    def counted(backbone, weights, x, statistics):
        together.append(len(x))
        return alone(backbone, weights, x, statistics)

    monkeypatch.setattr(Conv4, "embed_groups", counted)
    monkeypatch.setattr(Conv4, "groups_together", True)
    for chunks in (1, 3):
        with Engine(EngineChoices(threads=1, precision="fp32", chunks=chunks)) as engine:
            found = engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), 7)
        assert found.loss == pytest.approx(wanted.loss, rel=tolerance)
        for one, other in zip(found.gradients, wanted.gradients, strict=True):
            assert (one - other).norm() <= tolerance * other.norm() + 1e-12
    assert max(together) == 7


@pytest.mark.parametrize("name", ["maml", "metasgd", "reptile", "cnp"])
def test_small_networks_take_all_tasks_at_once_to_the_same_gradients(name):
    shape = EpisodeShape(1, 10, 7)
    spec = LearnerSpec(learner=name, backbone="mlp", backbone_options={"hidden": (40, 40)})
    learner = make_learner(spec, SinusoidTasks.spec, way=1, dtype=torch.float64).train()
    batch = SinusoidSampler(SinusoidTasks(), "train", shape, seed=0).batch(0, 25)
    batch = EpisodeBatch(
        1, *(part.double() for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
    )
    plan = TrainingPlan(way=1, shot=10, query=7, episodes=1, precision="fp32")
    chosen = EngineChoices.choose(plan, 25, learner.episodes_at_once(shape))
    assert (chosen.threads, chosen.chunks) == (1, 1)
    found = []
    for choices in (chosen, chosen.model_copy(update={"chunks": 25})):
        with Engine(choices) as engine:
            found.append(engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), 25))
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-10)
    for one, other in zip(found[0].gradients, found[1].gradients, strict=True):
        assert (one - other).norm() <= 1e-10 * other.norm() + 1e-12


def test_a_recorded_step_is_recorded_anew_for_each_stage(dataset, monkeypatch):
    class Recorded:
        """What a GPU's graph does with the numbers of Python: they stay as they were."""

        def __init__(self, compute, _):
            result = compute()
            self.replay = lambda: result

    monkeypatch.setattr("metalearn_core.training.engine.StepGraph", Recorded)
    learner, batch, _ = gradient(dataset, "mamlpp", 1)
    found = []
    with Engine(EngineChoices(threads=1, precision="fp32", chunks=1, graph=True)) as engine:
        for learner.progress in (0.0, 0.001, 0.1, 0.5):
            found.append(engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), 5).loss)
    expected = []
    for learner.progress in (0.0, 0.001, 0.1, 0.5):
        expected.append(learner.train_episodes(batch).losses.mean().item())
    assert found == pytest.approx(expected)
    assert found[0] == found[1]
    assert len(set(found)) == 3


PEAK = """
import re, sys
from pathlib import Path
import torch
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.memory import kept_memory
from metalearn_core.training.engine import Engine, EngineChoices
from metalearn_core.training.plan import TrainingPlan

tasks, network = int(sys.argv[1]), sys.argv[2]
spec = DatasetSpec(modality="image", example_shape=(1, 28, 28), dtype="uint8", mean=(.5,), std=(.2,), train_classes=9)
name, options = ("protonet", {"hidden": (1500, 1500)}) if network == "mlp" else ("maml", {})
learner = make_learner(LearnerSpec(learner=name, backbone=network, backbone_options=options), spec, way=5).train()
y = torch.arange(5).repeat(64, 1)
x = torch.randint(0, 256, (64, 5, 1, 28, 28), dtype=torch.uint8)
batch = EpisodeBatch(5, x, y, x.repeat(1, 15, 1, 1, 1), y.repeat(1, 15))
plan = TrainingPlan(way=5, shot=1, query=15, episodes=1, precision="fp32", threads=2, chunk=1)
choices = EngineChoices.choose(plan, tasks, learner.episodes_at_once(EpisodeShape(5, 1, 15)))
with kept_memory(), Engine(choices) as engine:
    for _ in range(3):
        engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), tasks)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])  # rusage has the parent's as well
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv4", "mlp"])
def test_the_peak_of_memory_does_not_grow_with_the_number_of_tasks(network):
    """Largest resident sizes in KiB, of processes that hold the same batch.

    With `conv4` a task's activations are some 10 MB, with `mlp` its gradients are 14 MB.
    """

    def peak(tasks):
        command = [sys.executable, "-c", PEAK, str(tasks), network]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(64) < peak(8) + 80_000
