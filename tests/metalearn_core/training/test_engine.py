import pytest
import torch

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.training.engine import Engine, EngineChoices
from metalearn_core.training.plan import TrainingPlan


def gradient(dataset, name, threads, tasks=5, precision="fp32", dtype=torch.float32, chunk=1):
    spec = LearnerSpec(learner=name, backbone_options={"width": 8, "blocks": 3})
    learner = make_learner(spec, dataset.spec, way=4, dtype=dtype).train()
    batch = EpisodeSampler(dataset, "train", EpisodeShape(4, 1, 3), seed=0).batch(0, tasks)
    with Engine(EngineChoices(threads=threads, precision=precision, chunk=chunk)) as engine:
        result = engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), tasks)
    return learner, batch, result


@pytest.mark.parametrize("name", ["maml", "protonet"])
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
    with Engine(EngineChoices(threads=2, precision="fp32")) as engine, pytest.raises(ZeroDivisionError):
        engine.gradient(learner, lambda task: 1 / 0, 3)


def test_torch_keeps_its_number_of_threads(dataset):
    before = torch.get_num_threads()
    gradient(dataset, "maml", 3)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_bf16_is_near_fp32(dataset, name):
    _, _, exact = gradient(dataset, name, 1, tasks=1)
    _, _, rounded = gradient(dataset, name, 1, tasks=1, precision="bf16")
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert all(value.dtype == torch.float32 for value in rounded.gradients)


def test_explicit_choices_are_taken():
    plan = TrainingPlan(way=4, shot=1, query=3, episodes=1, precision="fp32", threads=3)
    assert EngineChoices.choose(plan) == EngineChoices(threads=3, precision="fp32")
