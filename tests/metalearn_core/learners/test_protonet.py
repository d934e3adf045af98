import pytest
import torch
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.learners import learner_class


def naive_loss(learner, episodes, number):
    """Snell 2017, algorithm 1, for one episode: loops over classes and queries, torch's own layers."""
    x = torch.cat([episodes.support_x[number], episodes.query_x[number]])
    x = (x - 0.4) / 0.3
    weights = dict(learner.backbone.named_parameters())
    for block in range(3):
        x = F.conv2d(x, weights[f"blocks.{block}.conv.weight"], padding=1)
        scale, shift = weights[f"blocks.{block}.norm.weight"], weights[f"blocks.{block}.norm.bias"]
        x = F.max_pool2d(F.relu(F.batch_norm(x, None, None, scale, shift, training=True)), 2)
    features = x.flatten(1)
    size = len(episodes.support_y[number])
    prototypes = []
    for label in range(episodes.way):
        rows = [features[row] for row in range(size) if episodes.support_y[number, row] == label]
        prototypes.append(sum(rows) / len(rows))
    losses = []
    for row, label in enumerate(episodes.query_y[number]):
        distances = torch.stack([((features[size + row] - prototype) ** 2).sum() for prototype in prototypes])
        losses.append(distances[label] + torch.logsumexp(-distances, 0))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(make_double, make_episodes, seed):
    learner, episodes = make_double("protonet", seed).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([naive_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_training_logits_are_those_of_the_loss(make_double, make_episodes):
    learner, episodes = make_double("protonet").train(), make_episodes()
    logits = learner(episodes)
    losses = F.cross_entropy(logits.flatten(0, 1), episodes.query_y.flatten(), reduction="none").view(3, -1).mean(1)
    torch.testing.assert_close(losses, learner.train_episodes(episodes).losses)


def test_logits_are_minus_squared_distances(make_double):
    learner = make_double("protonet")
    support, query = torch.randn(1, 2, 6).double(), torch.randn(1, 1, 6).double()
    state = learner.adapt_features(support, torch.tensor([[1, 0]]), way=2)
    expected = [-(query[0, 0] - support[0, row]).pow(2).sum() for row in (1, 0)]
    torch.testing.assert_close(learner.predict_features(state, query)[0, 0], torch.stack(expected))


def test_transductive_normalises_queries_by_one_another(make_double, make_episodes):
    learner, episodes = make_double("protonet", batch_norm="transductive").eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    together, alone = learner.predict(state, episodes.query_x), learner.predict(state, episodes.query_x[:, :1])
    assert (together[:, :1] - alone).abs().max() > 1e-3


def test_recipe_trains_with_sixty_classes_and_five_queries():
    kind = learner_class("protonet")
    assert kind.train_shape(EpisodeShape(5, 3, 15), kind.Config()) == EpisodeShape(60, 3, 5)
