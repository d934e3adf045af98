from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, learner_class, make_learner

REAL = DatasetSpec(
    modality="vector",
    example_shape=(2,),
    dtype="float32",
    mean=(0.0,) * 2,
    std=(1.0,) * 2,
    train_classes=0,
    target_size=3,
)


def plain_features(learner, x):
    """Features of one episode by torch's own layers, normalised together."""
    x = (x - 0.4) / 0.3
    weights = dict(learner.backbone.named_parameters())
    for block in range(3):
        x = F.conv2d(x, weights[f"blocks.{block}.conv.weight"], padding=1)
        scale, shift = weights[f"blocks.{block}.norm.weight"], weights[f"blocks.{block}.norm.bias"]
        x = F.max_pool2d(F.relu(F.batch_norm(x, None, None, scale, shift, training=True)), 2)
    return x.flatten(1)


def primal_loss(learner, episodes, number):
    """One episode by the normal equations in the features, (XᵀX + λI) W = XᵀY, instead of Woodbury's identity."""
    size = episodes.support_x.shape[1]
    features = plain_features(learner, torch.cat([episodes.support_x[number], episodes.query_x[number]]))
    x, queries = features[:size], features[size:]
    y = torch.eye(episodes.way).double()[episodes.support_y[number]]
    penalty = torch.exp(learner.log_ridge) * torch.eye(x.shape[1]).double()
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    scores = torch.log_softmax(torch.exp(learner.log_scale) * queries @ weight, dim=1)
    return -scores[range(len(scores)), episodes.query_y[number]].mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_every_gradient_are_those_of_the_normal_equations(make_double, make_episodes, seed):
    learner, episodes = make_double("r2d2", seed, ridge=0.7, scale=3.0).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([primal_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("shot", "size"), [(1, 12), (5, 12), (5, 6)])
def test_weights_are_scikit_learns(make_double, ridge, shot, size):
    learner = make_double("r2d2", randomise=False, ridge=ridge)
    generator = torch.Generator().manual_seed(shot)
    support = torch.randn(2, 4 * shot, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(4).repeat(shot).expand(2, -1)
    weight = learner.adapt_features(support, labels, way=4)["weight"].detach()
    for episode in range(2):
        oracle = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(support[episode], F.one_hot(labels[episode]))
        torch.testing.assert_close(weight[episode].T, torch.from_numpy(oracle.coef_), rtol=1e-6, atol=1e-8)


def test_examples_left_out_leave_scikit_learns_weights_for_the_others(make_double):
    learner = make_double("r2d2", randomise=False, ridge=0.5)
    support = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels, mask = torch.tensor([[0, 1, 2, 3, 0, 1, 3, 0]]), torch.tensor([[1, 0, 1, 1, 1, 1, 0, 0]]).bool()
    state = learner.adapt_features(support, labels, way=4, support_mask=mask)
    oracle = Ridge(alpha=0.5, fit_intercept=False, solver="svd").fit(support[mask], F.one_hot(labels, 4)[mask])
    torch.testing.assert_close(state["weight"][0].T.detach(), torch.from_numpy(oracle.coef_))


def test_the_penalty_keeps_more_examples_than_features_solvable_in_single_precision(images):
    learner = make_learner(LearnerSpec(learner="r2d2", options={"ridge": 1e-6}), replace_size(images, 16))
    support = torch.rand(1, 200, 4, generator=torch.Generator().manual_seed(0))
    labels = (support[..., 0] > 0.5).long()
    weight = learner.adapt_features(support, labels, way=2)["weight"][0].detach()
    oracle = Ridge(alpha=1e-6, fit_intercept=False, solver="svd").fit(
        support[0].double(), F.one_hot(labels[0]).double()
    )
    torch.testing.assert_close(weight.T.double(), torch.from_numpy(oracle.coef_), rtol=1e-4, atol=1e-4)


def replace_size(spec, side):
    return spec.model_copy(update={"example_shape": (1, side, side)})


def test_real_targets_are_scikit_learns_means_scaled_and_shifted(make_episodes):
    spec = LearnerSpec(learner="r2d2", options={"ridge": 0.3, "scale": 2.0}, backbone="mlp")
    learner = make_learner(spec, REAL, dtype=torch.float64).train()
    learner.bias.data.copy_(torch.tensor([0.5, -1.0, 2.0]))
    generator = torch.Generator().manual_seed(1)
    support_y, query_y = (torch.randn(2, 12, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    episodes = replace(make_episodes(b=2, way=4, shot=3, shape=(2,)), way=1, support_y=support_y, query_y=query_y)
    means = learner(episodes)
    for episode in range(2):
        support, query = (learner.embed(x[episode]).detach() for x in (episodes.support_x, episodes.query_x))
        oracle = Ridge(alpha=0.3, fit_intercept=False, solver="svd").fit(support, support_y[episode])
        expected = 2.0 * oracle.predict(query) + [0.5, -1.0, 2.0]
        torch.testing.assert_close(means[episode].detach(), torch.from_numpy(expected), rtol=1e-6, atol=1e-8)
    loss = learner.train_episodes(episodes).losses.sum()
    torch.testing.assert_close(loss, ((means - query_y) ** 2).mean(dim=(1, 2)).sum())
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, list(learner.parameters())))


def test_recipe_trains_with_sixty_classes_and_five_queries():
    kind = learner_class("r2d2")
    assert kind.train_shape(EpisodeShape(5, 3, 15), kind.Config()) == EpisodeShape(60, 3, 5)
