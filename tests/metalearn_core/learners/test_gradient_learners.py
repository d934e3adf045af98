"""ANIL, Meta-SGD, MAML++ and Proto-MAML against their papers' algorithms, written out for one task."""

from dataclasses import replace

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


@pytest.mark.parametrize("name", ["metasgd", "mamlpp", "protomaml"])
def test_first_order_leaves_second_derivatives_out(make_double, make_episodes, monkeypatch, name):
    learner = make_double(name, inner_lr=ALPHA, inner_steps=2, first_order=True).train()
    learner.progress = 0.05
    episodes = make_episodes()

    def held(*args, exact=gradient):
        return {name: value.detach() for name, value in exact(*args).items()}

    monkeypatch.setitem(globals(), "gradient", held)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([NAIVE[name](learner, episodes, number) for number in range(3)])
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
        assert one.abs().max() > 0


def assert_is_the_limit_of_a_difference(learner, episodes, parameter):
    """Hold the outer gradient, where it is steepest along a parameter, to losses on both sides of it."""
    (gradient,) = torch.autograd.grad(learner.train_episodes(episodes).losses.sum(), parameter)
    place = int(gradient.abs().argmax())
    ends = []
    for change in (1e-6, -1e-6):
        parameter.data.view(-1)[place] += change
        ends.append(learner.train_episodes(episodes).losses.sum().item())
        parameter.data.view(-1)[place] -= change
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient.flatten()[place].item(), rel=1e-5)


@pytest.mark.parametrize("name", NAIVE)
def test_the_outer_gradient_is_the_limit_of_a_difference(make_double, make_episodes, name):
    learner, episodes = make_double(name, inner_lr=ALPHA, inner_steps=2).train(), make_episodes(b=1)
    rates = {"metasgd": lambda: [learner.rates[1]], "mamlpp": lambda: [learner.rates]}.get(name, list)
    for parameter in [learner.backbone.blocks[1].conv.weight, *rates()]:
        assert_is_the_limit_of_a_difference(learner, episodes, parameter)


@pytest.mark.parametrize("name", ["maml", "metasgd", "mamlpp", "protomaml"])
@pytest.mark.parametrize(
    ("backbone", "options"),
    [("conv4", {"width": 5, "blocks": 3, "halvings": 2}), ("resnet12", {"widths": (3, 4, 3, 4)})],
)
def test_so_it_is_for_backbones_that_have_no_tape(images, make_episodes, name, backbone, options):
    shape = (1, 16, 16)
    spec = LearnerSpec(
        learner=name, options={"inner_lr": 0.05, "inner_steps": 2}, backbone=backbone, backbone_options=options
    )
    dataset = images.model_copy(update={"example_shape": shape})
    learner = make_learner(spec, dataset, way=4, dtype=torch.float64).train()
    generator = torch.Generator().manual_seed(5)
    for parameter in learner.head.parameters() if name != "protomaml" else ():
        parameter.data.normal_(generator=generator)
    assert not learner.backbone.taped
    episodes = make_episodes(b=1, shape=shape)
    hard = replace(episodes, query_y=episodes.query_y.roll(1, dims=1))  # so that the gradient is not next to zero
    for parameter in [value for value in learner.backbone.parameters() if value.dim() == 4][:2]:
        assert_is_the_limit_of_a_difference(learner, hard, parameter)


@pytest.mark.parametrize("name", ["maml", "metasgd", "mamlpp", "protomaml"])
def test_a_backbone_without_a_tape_gives_the_same_gradients(make_double, make_episodes, gradients_both_ways, name):
    by_hand, by_autograd = gradients_both_ways(make_double(name, inner_steps=2).train(), make_episodes())
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-9, atol=1e-12)


def test_metasgd_starts_from_one_rate_that_the_seed_draws(images):
    def rates(seed, **options):
        learner = make_learner(LearnerSpec(learner="metasgd", options=options), images, way=4, seed=seed)
        return {rate for values in learner.rates for rate in values.unique().tolist()}

    drawn = [rates(seed) for seed in (0, 0, 1, 2)]
    assert all(len(found) == 1 and 0.005 <= found.copy().pop() <= 0.1 for found in drawn)
    assert drawn[0] == drawn[1] != drawn[2] != drawn[3]
    assert rates(0, inner_lr=0.25) == {0.25}


def test_steps_of_mamlpp_beyond_those_of_training_are_like_its_last_one(make_double, make_episodes):
    learner, episodes = make_double("mamlpp", inner_steps=2, eval_steps=4).eval(), make_episodes(b=1)
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    longer = make_double("mamlpp", inner_steps=4, eval_steps=4).eval()
    values = learner.state_dict()
    rows = torch.tensor([0, 1, 1, 1])
    values["rates"] = values["rates"][rows]
    for name in [name for name in values if name.startswith("offsets")]:
        values[name] = values[name][torch.tensor([0, 1, 2, 2, 2])]
    longer.load_state_dict(values)
    expected = longer.adapt(episodes.support_x, episodes.support_y, way=4)
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


def test_importances_go_from_equal_to_the_last_step_alone(make_double):
    learner = make_double("mamlpp", inner_steps=4, multi_step_share=0.5).train()
    assert learner.importances() == [0.25] * 4
    learner.progress = 0.25
    assert learner.importances() == pytest.approx([0.125, 0.125, 0.125, 0.625])
    stage = learner.stage()
    learner.progress = 0.29
    assert learner.stage() == stage, "in stages, for the sake of GPUs"
    learner.progress = 0.31
    assert learner.stage() != stage
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


def test_protomaml_adapts_its_head_to_features_without_weights():
    spec = DatasetSpec(
        modality="vector", example_shape=(6,), dtype="float32", mean=(0.5,) * 6, std=(0.3,) * 6, train_classes=7
    )
    learner = make_learner(LearnerSpec(learner="protomaml", backbone="identity"), spec, dtype=torch.float64).eval()
    x, y = torch.rand(2, 6, 6, dtype=torch.float64), torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)
    with torch.no_grad():
        wanted = learner.adapt(x, y, way=3)
    found = learner.adapt(x, y, way=3)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].detach(), value)


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


PICTURES = DatasetSpec(
    modality="image",
    example_shape=(1, 8, 8),
    dtype="float32",
    mean=(0.4,),
    std=(0.3,),
    train_classes=1,
    target_size=2,
)


@pytest.mark.parametrize("name", ["maml", "metasgd", "mamlpp"])
def test_regression_on_pictures_takes_the_tape_and_gives_the_gradients_of_autograd(gradients_both_ways, name):
    spec = LearnerSpec(learner=name, options={"inner_steps": 2}, backbone_options={"width": 5, "blocks": 3})
    learner = make_learner(spec, PICTURES, way=1, dtype=torch.float64).train()
    generator = torch.Generator().manual_seed(3)
    for parameter in learner.head.parameters():
        parameter.data.normal_(generator=generator)
    x, query = (torch.rand(2, 6, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    y, target = (torch.randn(2, 6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    episodes = EpisodeBatch(way=1, support_x=x, support_y=y, query_x=query, query_y=target)
    by_hand, by_autograd = gradients_both_ways(learner, episodes)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["maml", "anil", "metasgd", "mamlpp", "reptile"])
def test_padding_changes_no_regression(name):
    spec = LearnerSpec(learner=name, backbone="mlp", backbone_options={"hidden": (6, 5)})
    learner = make_learner(spec, SINES, way=1, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(3)
    x, y, query, target = (torch.randn(2, n, 1, generator=generator, dtype=torch.float64) for n in (10, 10, 7, 7))
    episodes = EpisodeBatch(way=1, support_x=x, support_y=y, query_x=query, query_y=target)
    padded = EpisodeBatch(
        way=1,
        support_x=F.pad(x, (0, 0, 0, 3), value=9.0),
        support_y=F.pad(y, (0, 0, 0, 3), value=9.0),
        query_x=F.pad(query, (0, 0, 0, 2), value=9.0),
        query_y=F.pad(target, (0, 0, 0, 2), value=9.0),
        support_mask=torch.arange(13).expand(2, -1) < 10,
        query_mask=torch.arange(9).expand(2, -1) < 7,
    )
    assert learner(episodes).shape == (2, 7, 1)
    torch.testing.assert_close(learner(padded)[:, :7], learner(episodes), rtol=1e-9, atol=1e-10)
    for training in (True, False):
        learner.train(training)
        losses = learner.train_episodes(padded).losses
        torch.testing.assert_close(losses, learner.train_episodes(episodes).losses, rtol=1e-9, atol=1e-10)


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
