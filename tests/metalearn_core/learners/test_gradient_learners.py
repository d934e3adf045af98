"""ANIL, Meta-SGD, MAML++, Proto-MAML and Reptile against their papers' algorithms, written out for one task."""

import pytest
import torch
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from tests.metalearn_core.learners.naive_network import cross_entropy, network

ALPHA, STEP = 0.3, 2**-5
BY_GRADIENT = ["maml", "anil", "metasgd", "mamlpp", "protomaml"]


def task(episodes, number):
    x = [(part[number] - 0.4) / 0.3 for part in (episodes.support_x, episodes.query_x)]
    return x[0], episodes.support_y[number], x[1], episodes.query_y[number]


def shared(learner):
    return {name: value for name, value in learner.named_parameters() if name.startswith(("backbone.", "head."))}


def gradient(weights, x, y, wanted=None):
    loss = cross_entropy(network(weights, x)[0], y)
    names = wanted or list(weights)
    found = torch.autograd.grad(loss, [weights[name] for name in names], create_graph=True)
    return dict(zip(names, found, strict=True))


def query_loss(weights, support, query, labels):
    return cross_entropy(network(weights, query, network(weights, support)[1])[0], labels)


def naive_anil(learner, episodes, number):
    support, support_y, query, query_y = task(episodes, number)
    weights = shared(learner)
    head = ["head.weight", "head.bias"]
    for _ in range(learner.steps):
        found = gradient(weights, support, support_y, head)
        weights = {**weights, **{name: weights[name] - ALPHA * found[name] for name in head}}
    return query_loss(weights, support, query, query_y)


def naive_metasgd(learner, episodes, number):
    support, support_y, query, query_y = task(episodes, number)
    weights = shared(learner)
    rates = dict(zip(weights, learner.rates, strict=True))
    for _ in range(learner.steps):
        found = gradient(weights, support, support_y)
        weights = {name: value - rates[name] * found[name] for name, value in weights.items()}
    return query_loss(weights, support, query, query_y)


def naive_mamlpp(learner, episodes, number):
    """The loss after each step, weighed; step sizes by tensor and step; norms of each step are not adapted."""
    support, support_y, query, query_y = task(episodes, number)
    start = shared(learner)
    norms = [name for name in start if ".norm." in name]
    moved = [name for name in start if ".norm." not in name]

    def with_norms(weights, step):
        return {**weights, **{n: start[n] + o[step] for n, o in zip(norms, learner.offsets, strict=True)}}

    weights, losses = with_norms(start, 0), []
    for step in range(learner.steps):
        found = gradient(weights, support, support_y, moved)
        stepped = {n: weights[n] - learner.rates[step, i] * found[n] for i, n in enumerate(moved)}
        weights = with_norms({**weights, **stepped}, step + 1)
        losses.append(query_loss(weights, support, query, query_y))
    importances = learner.importances() or [0.0] * (learner.steps - 1) + [1.0]
    return sum(weight * loss for weight, loss in zip(importances, losses, strict=True))


def naive_protomaml(learner, episodes, number):
    support, support_y, query, query_y = task(episodes, number)
    weights = shared(learner)
    identity = {"head.weight": torch.eye(learner.backbone.feature_size, dtype=torch.float64)}
    features, _ = network({**weights, **identity, "head.bias": torch.zeros((), dtype=torch.float64)}, support)
    means = torch.stack([features[support_y == label].mean(dim=0) for label in range(episodes.way)])
    weights = {**weights, "head.weight": 2 * means, "head.bias": -(means**2).sum(dim=1)}
    weights = {name: value.clone() for name, value in weights.items()}  # an inner step moves the head as it is
    for _ in range(learner.steps):
        found = gradient(weights, support, support_y)
        weights = {name: value - ALPHA * found[name] for name, value in weights.items()}
    return query_loss(weights, support, query, query_y)


NAIVE = {"anil": naive_anil, "metasgd": naive_metasgd, "mamlpp": naive_mamlpp, "protomaml": naive_protomaml}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", NAIVE)
def test_loss_and_every_gradient_are_those_of_the_papers_algorithm(make_double, make_episodes, name, steps):
    learner = make_double(name, inner_lr=ALPHA, inner_steps=steps).train()
    if name == "mamlpp":
        learner.progress = 0.05
    episodes = make_episodes()
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([NAIVE[name](learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
        assert one.abs().max() > 0  # it reaches every parameter


def test_reptile_moves_towards_where_adam_without_momentum_ends(make_double, make_episodes):
    learner = make_double("reptile", inner_lr=0.01, inner_steps=4, inner_batch=3).train()
    episodes = make_episodes()
    parameters = shared(learner)
    losses = learner.train_episodes(episodes).losses
    got = torch.autograd.grad(losses.sum(), list(parameters.values()))
    wanted = [torch.zeros_like(value) for value in parameters.values()]
    for number in range(3):
        support, support_y, _, _ = task(episodes, number)
        phi = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        adam = torch.optim.Adam(phi.values(), lr=0.01, betas=(0.0, 0.999))
        for step in range(4):
            rows = [(3 * step + offset) % len(support) for offset in range(3)]
            adam.zero_grad()
            cross_entropy(network(phi, support[rows])[0], support_y[rows]).backward()
            adam.step()
        distance = sum(((value - phi[name].detach()) ** 2).sum() for name, value in parameters.items()) / 2
        torch.testing.assert_close(losses[number], distance, rtol=1e-7, atol=1e-10)
        wanted = [total + value - phi[name] for total, (name, value) in zip(wanted, parameters.items(), strict=True)]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_importances_go_from_equal_to_the_last_step_alone(make_double):
    learner = make_double("mamlpp", inner_steps=4, multi_step_share=0.5).train()
    assert learner.importances() == [0.25] * 4
    learner.progress = 0.25
    assert learner.importances() == pytest.approx([0.125, 0.125, 0.125, 0.625])
    learner.progress = 0.5
    assert learner.importances() is None


def test_the_first_order_comes_first_where_asked(make_double, make_episodes):
    options = {"inner_steps": 2, "multi_step_share": 0.0, "first_order_share": 0.3}
    learner, episodes = make_double("mamlpp", **options).train(), make_episodes()

    def gradients(progress):
        learner.progress = progress
        return torch.autograd.grad(learner.train_episodes(episodes).losses.sum(), list(learner.backbone.parameters()))

    early, late, later = gradients(0.1), gradients(0.3), gradients(0.9)
    assert not torch.allclose(early[0], late[0])
    assert all(torch.equal(one, other) for one, other in zip(late, later, strict=True))


@pytest.mark.parametrize("name", [*BY_GRADIENT, "reptile"])
@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_what_is_masked_out_has_no_part(make_double, make_episodes, name, batch_norm):
    learner, episodes = make_double(name, batch_norm=batch_norm, eval_steps=3).eval(), make_episodes()
    expected = learner(episodes).detach()
    padded = EpisodeBatch(
        way=episodes.way,
        support_x=torch.cat([episodes.support_x, torch.full_like(episodes.support_x[:, :3], 9.0)], dim=1),
        support_y=torch.cat([episodes.support_y, episodes.support_y[:, :3]], dim=1),
        query_x=torch.cat([episodes.query_x, torch.full_like(episodes.query_x[:, :2], 9.0)], dim=1),
        query_y=torch.cat([episodes.query_y, episodes.query_y[:, :2]], dim=1),
        support_mask=torch.ones(3, 11, dtype=torch.bool).index_fill(1, torch.arange(8, 11), False),
        query_mask=torch.ones(3, 14, dtype=torch.bool).index_fill(1, torch.arange(12, 14), False),
    )
    torch.testing.assert_close(learner(padded)[:, :12], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [*BY_GRADIENT, "reptile"])
def test_a_query_alone_gets_the_same_logits(make_double, make_episodes, name):
    learner, episodes = make_double(name, eval_steps=2).eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    together = learner.predict(state, episodes.query_x)
    alone = torch.cat([learner.predict(state, episodes.query_x[:, n : n + 1]) for n in range(12)], dim=1)
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["anil", "reptile", "metasgd", "mamlpp"])
def test_another_way_than_its_own_is_refused(make_double, make_episodes, name):
    with pytest.raises(UsageError, match=f"{name} was trained for 4-way episodes, got 3-way"):
        make_double(name)(make_episodes(way=3))


def test_protomaml_takes_any_way_and_a_class_without_support(make_double, make_episodes):
    learner, episodes = make_double("protomaml").eval(), make_episodes(way=3)
    assert learner(episodes).shape == (3, 9, 3)
    few = learner.adapt(episodes.support_x, episodes.support_y.clamp_max(1), way=3)
    logits = learner.predict(few, episodes.query_x)
    assert logits[..., 2].eq(-torch.inf).all()
    assert logits[..., :2].isfinite().all()


SINES = DatasetSpec(
    modality="vector", example_shape=(1,), dtype="float32", mean=(0.0,), std=(1.0,), train_classes=1, target_size=1
)


def naive_regression(learner, x, y, steps, moved):
    weights = {name: value for name, value in learner.named_parameters() if not name.startswith(("rates", "offsets"))}

    def outputs(weights, x):
        hidden = x
        for layer in range(2):
            name = f"backbone.layers.{layer}"
            hidden = F.relu(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
        return hidden @ weights["head.weight"].T + weights["head.bias"]

    for _ in range(steps):
        names = [name for name in weights if name.startswith(moved)]
        loss = ((outputs(weights, x) - y) ** 2).mean()
        found = torch.autograd.grad(loss, [weights[name] for name in names], create_graph=True)
        stepped = {n: weights[n] - STEP * g for n, g in zip(names, found, strict=True)}
        weights = {**weights, **stepped}
    return lambda query: outputs(weights, query)


@pytest.mark.parametrize(("name", "moved"), [("maml", ""), ("anil", "head"), ("metasgd", ""), ("mamlpp", "")])
def test_regression_takes_steps_on_the_squared_error(name, moved):
    spec = LearnerSpec(
        learner=name,
        options={"inner_lr": STEP, "inner_steps": 2},
        backbone="mlp",
        backbone_options={"hidden": (6, 5)},
    )
    learner = make_learner(spec, SINES, way=1, dtype=torch.float64).train()
    learner.progress = 1.0
    generator = torch.Generator().manual_seed(3)
    for parameter in learner.head.parameters():
        parameter.data.normal_(generator=generator)
    x, query = (torch.randn(2, n, 1, generator=generator, dtype=torch.float64) for n in (10, 7))
    y, target = (torch.randn(2, n, 1, generator=generator, dtype=torch.float64) for n in (10, 7))
    episodes = EpisodeBatch(way=1, support_x=x, support_y=y, query_x=query, query_y=target)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack(
        [((naive_regression(learner, x[n], y[n], 2, moved)(query[n]) - target[n]) ** 2).mean() for n in range(2)]
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got = torch.autograd.grad(losses.sum(), parameters, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected.sum(), parameters, allow_unused=True, materialize_grads=True)
    for (parameter_name, _), one, other in zip(learner.named_parameters(), got, wanted, strict=True):
        if not parameter_name.startswith(("rates", "offsets")):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
