from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, learner_class, make_learner
from metalearn_core.learners.metric import relationnet

VECTORS = DatasetSpec(
    modality="vector", example_shape=(6,), dtype="float32", mean=(0.5,) * 6, std=(0.3,) * 6, train_classes=7
)


def block(module, name, x, pooled):
    weights = dict(module.named_parameters())
    x = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1)
    x = F.relu(F.batch_norm(x, None, None, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"], True))
    return F.max_pool2d(x, 2) if pooled else x


def naive_scores(learner, support_x, support_y, query_x, labels):
    """Sung 2018, equation 1, for one episode: the maps of every pair concatenated, torch's own layers."""
    maps = (torch.cat([support_x, query_x]) - 0.4) / 0.3
    for number, pooled in enumerate((True, True, False)):
        maps = block(learner.backbone, f"blocks.{number}", maps, pooled)
    classes = [sum(maps[i] for i in range(len(support_y)) if support_y[i] == label) for label in labels]
    pairs = torch.stack([torch.cat([one, query]) for query in maps[len(support_y) :] for one in classes])
    for number, pooled in enumerate((True, False)):  # the maps are 2×2, then 1×1
        pairs = block(learner.relation, f"blocks.{number}", pairs, pooled)
    hidden = torch.relu(learner.relation.hidden(pairs.flatten(1)))
    return torch.sigmoid(learner.relation.score(hidden)).view(len(query_x), len(labels))


def naive_loss(learner, episodes, number):
    """Sung 2018, equation 2, averaged over pairs."""
    scores = naive_scores(
        learner, episodes.support_x[number], episodes.support_y[number], episodes.query_x[number], range(4)
    )
    errors = [
        (scores[j, k] - float(episodes.query_y[number, j] == k)) ** 2 for j in range(len(scores)) for k in range(4)
    ]
    return sum(errors) / len(errors)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(make_double, make_episodes, seed):
    learner, episodes = make_double("relationnet", seed).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([naive_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_probabilities_are_the_scores_divided_by_their_sum(make_double, make_episodes):
    learner, episodes = make_double("relationnet").train(), make_episodes()
    probabilities = learner(episodes).softmax(dim=-1)
    for number in range(3):
        scores = naive_scores(
            learner, episodes.support_x[number], episodes.support_y[number], episodes.query_x[number], range(4)
        )
        torch.testing.assert_close(probabilities[number], scores / scores.sum(dim=1, keepdim=True))


def test_a_class_without_support_has_no_part_in_statistics_or_loss(make_double, make_episodes):
    learner, episodes = make_double("relationnet").train(), make_episodes()
    labels = [0, 2, 3]
    absent = replace(episodes, support_mask=episodes.support_y != 1, query_mask=episodes.query_y != 1)
    outcome = learner.train_episodes(absent)
    for number in range(3):
        keep, asked = absent.support_mask[number], absent.query_mask[number]
        scores = naive_scores(
            learner,
            episodes.support_x[number, keep],
            episodes.support_y[number, keep],
            episodes.query_x[number, asked],
            labels,
        )
        wanted = episodes.query_y[number, asked].unsqueeze(1) == torch.tensor(labels)
        torch.testing.assert_close(outcome.losses[number], ((scores - wanted.double()) ** 2).mean())
    gradients = torch.autograd.grad(outcome.losses.sum(), list(learner.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


class AnswersStayOnTheGPU(TorchDispatchMode):
    """Refuses to hand a yes or no to Python, as a GPU does while a step is being recorded.

    Integers it does hand over: on a processor, though not on a GPU, `one_hot` looks at the labels.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asks = func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        assert not asks, "the step waits for an answer"
        return func(*args, **(kwargs or {}))


def test_a_step_that_is_recorded_waits_for_no_answer_and_has_the_same_loss(make_double, make_episodes, monkeypatch):
    learner, episodes = make_double("relationnet").train(), make_episodes()
    wanted = learner.train_episodes(episodes).losses
    monkeypatch.setattr(relationnet, "_is_recorded", lambda device: True)
    with AnswersStayOnTheGPU():
        found = learner.train_episodes(episodes).losses
    torch.testing.assert_close(found, wanted)


def test_training_averages_the_statistics_of_the_relation_module_too(make_double, make_episodes):
    learner = make_double("relationnet").train()
    statistics = learner.train_episodes(make_episodes()).statistics
    averages = learner.running_averages()
    assert {name for name in averages if name.startswith("relation.")} == {
        f"relation.blocks.{number}.norm.{which}" for number in (0, 1) for which in ("mean", "var")
    }
    assert {name: value.shape for name, value in statistics.items()} == {
        name: (3, *value.shape) for name, value in averages.items()
    }


def test_running_statistics_of_an_episode_give_its_training_logits(make_double, make_episodes):
    learner, episodes = make_double("relationnet").train(), make_episodes(b=1)
    logits, statistics = learner(episodes), learner.train_episodes(episodes).statistics
    for name, average in learner.running_averages().items():
        average.copy_(statistics[name][0])
    torch.testing.assert_close(learner.eval()(episodes), logits)


def test_transductive_normalises_queries_by_one_another(make_double, make_episodes):
    learner, episodes = make_double("relationnet", batch_norm="transductive").eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    together, alone = learner.predict(state, episodes.query_x), learner.predict(state, episodes.query_x[:, :1])
    assert (together[:, :1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("backbone", "spec", "words"),
    [
        ("mlp", None, ["relationnet compares feature maps", "mlp gives vectors", "conv4"]),
        ("mlp", VECTORS, ["relationnet takes image examples", "vector"]),
        ("conv4", VECTORS, ["relationnet takes image examples", "vector"]),
    ],
)
def test_without_maps_it_says_what_it_needs_in_one_line(images, backbone, spec, words):
    with pytest.raises(UsageError) as error:
        make_learner(LearnerSpec(learner="relationnet", backbone=backbone), spec or images)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("way", "shot", "query"), [(5, 1, 19), (5, 5, 15), (20, 1, 10), (20, 5, 5)])
def test_recipe_trains_as_it_is_evaluated_with_the_papers_queries(way, shot, query):
    kind = learner_class("relationnet")
    assert kind.train_shape(EpisodeShape(way, shot, 7), kind.Config()) == EpisodeShape(way, shot, query)
