"""Reptile against torch's optimisers, one episode at a time."""

import pytest
import torch
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, learner_class, make_learner
from tests.metalearn_core.learners.naive_network import cross_entropy, network

OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.0, 0.999)),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
}
BATCH = 3
SINES = DatasetSpec(
    modality="vector", example_shape=(1,), dtype="float32", mean=(0.0,), std=(1.0,), train_classes=1, target_size=1
)


def trained(start, loss_of, examples, steps, batch, optimiser):
    """Return what the optimiser makes of the weights on mini-batches in turn."""
    phi = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    inner = OPTIMISERS[optimiser](phi.values())
    for step in range(steps):
        inner.zero_grad()
        loss_of(phi, [(batch * step + offset) % examples for offset in range(batch)]).backward()
        inner.step()
    return {name: value.detach() for name, value in phi.items()}


def loss_on(episodes, number):
    support = (episodes.support_x[number] - 0.4) / 0.3
    return lambda phi, rows: cross_entropy(network(phi, support[rows])[0], episodes.support_y[number, rows])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_outer_gradient_leads_to_where_the_inner_optimiser_ends(make_double, make_episodes, optimiser):
    options = {"inner_lr": 0.01, "inner_steps": 4, "inner_batch": BATCH, "inner_optimiser": optimiser}
    learner, episodes = make_double("reptile", **options).train(), make_episodes()
    parameters = dict(learner.named_parameters())
    losses = learner.train_episodes(episodes).losses
    got = torch.autograd.grad(losses.sum(), list(parameters.values()))
    wanted = [torch.zeros_like(value) for value in parameters.values()]
    for number in range(3):
        phi = trained(parameters, loss_on(episodes, number), 8, 4, BATCH, optimiser)
        distance = sum(((value - phi[name]) ** 2).sum() for name, value in parameters.items()) / 2
        torch.testing.assert_close(losses[number], distance, rtol=1e-7, atol=1e-10)
        wanted = [total + value - phi[name] for total, (name, value) in zip(wanted, parameters.items(), strict=True)]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_evaluation_takes_its_own_steps_on_whole_support_sets(make_double, make_episodes):
    learner = make_double("reptile", inner_lr=0.01, inner_steps=1, eval_steps=6, inner_batch=BATCH).eval()
    episodes = make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    for number in range(3):
        phi = trained(dict(learner.named_parameters()), loss_on(episodes, number), 8, 6, 8, "adam")
        for name, value in phi.items():
            torch.testing.assert_close(state[name][number], value, rtol=1e-7, atol=1e-9)


def test_a_support_set_sorted_by_class_is_learned_like_a_shuffled_one(make_double, make_episodes):
    learner, episodes = make_double("reptile", inner_batch=2, eval_steps=10).eval(), make_episodes(b=1)
    order = episodes.support_y[0].argsort(stable=True)
    assert not torch.equal(order, torch.arange(8))
    state = learner.adapt(episodes.support_x[:, order], episodes.support_y[:, order], way=4)
    torch.testing.assert_close(learner.predict(state, episodes.query_x), learner(episodes), rtol=1e-7, atol=1e-7)


def test_queries_teach_nothing_and_are_reported(make_double, make_episodes):
    learner, episodes = make_double("reptile").train(), make_episodes()
    outcome = learner.train_episodes(episodes)
    other = learner.train_episodes(make_episodes().with_tensors({"query_x": 1 - episodes.query_x}))
    assert torch.equal(outcome.losses, other.losses)
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    right = learner.predict(state, episodes.query_x).argmax(dim=-1) == episodes.query_y
    torch.testing.assert_close(outcome.accuracies, right.double().mean(dim=1))


def test_regression_steps_are_on_the_squared_error():
    options = {"inner_lr": 0.01, "inner_steps": 3, "inner_batch": BATCH}
    spec = LearnerSpec(learner="reptile", options=options, backbone="mlp", backbone_options={"hidden": (6, 5)})
    learner = make_learner(spec, SINES, way=1, dtype=torch.float64).train()
    generator = torch.Generator().manual_seed(3)
    for parameter in learner.head.parameters():
        parameter.data.normal_(generator=generator)
    x, y, query, target = (torch.randn(1, n, 1, generator=generator, dtype=torch.float64) for n in (10, 10, 7, 7))
    parameters = dict(learner.named_parameters())

    def outputs(phi, x):
        for layer in range(2):
            x = F.relu(F.linear(x, *(phi[f"backbone.layers.{layer}.{name}"] for name in ("weight", "bias"))))
        return F.linear(x, phi["head.weight"], phi["head.bias"])

    phi = trained(parameters, lambda phi, rows: F.mse_loss(outputs(phi, x[0, rows]), y[0, rows]), 10, 3, BATCH, "adam")
    outcome = learner.train_episodes(EpisodeBatch(way=1, support_x=x, support_y=y, query_x=query, query_y=target))
    distance = sum(((value - phi[name]) ** 2).sum() for name, value in parameters.items()) / 2
    torch.testing.assert_close(outcome.losses[0], distance, rtol=1e-9, atol=1e-12)
    error = F.mse_loss(outputs(phi, query[0]), target[0])
    torch.testing.assert_close(outcome.accuracies[0], -error, rtol=1e-7, atol=1e-10)


def test_recipe_trains_with_ten_shots_or_those_of_evaluation():
    kind = learner_class("reptile")
    assert kind.train_shape(EpisodeShape(5, 1, 15), kind.Config()) == EpisodeShape(5, 10, 1)
    assert kind.train_shape(EpisodeShape(5, 20, 15), kind.Config()).shot == 20
