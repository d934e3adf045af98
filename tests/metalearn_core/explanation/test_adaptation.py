import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.explanation.adaptation import SHOWN_STEPS, explain_adaptation, layer_changes, support_losses
from metalearn_core.learners import LEARNERS

CONVOLUTIONS = [f"backbone.blocks.{number}.conv" for number in range(2)]
NORMS = [f"backbone.blocks.{number}.norm" for number in range(2)]
MOVED = {
    "maml": {*CONVOLUTIONS, *NORMS, "head"},
    "metasgd": {*CONVOLUTIONS, *NORMS, "head"},
    "reptile": {*CONVOLUTIONS, *NORMS, "head"},
    "protomaml": {*CONVOLUTIONS, *NORMS, "head"},
    "finetune": {*CONVOLUTIONS, *NORMS, "head"},
    "mamlpp": {*CONVOLUTIONS, "head"},  # the batch norms of a step are the same for any support set
    "anil": {"head"},
    "cnp": {*NORMS},
}


@pytest.fixture
def maml(make_double):
    return make_double("maml", eval_steps=4, inner_lr=0.3)


def inner_loop(learner, x, y, steps):
    """Plain gradient descent on copies of the parameters: the losses before each step and after the last."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in learner.named_parameters()}
    losses = []
    for _ in range(steps + 1):
        hidden = (x - 0.5) / 0.3
        for number in range(2):
            own = f"backbone.blocks.{number}"
            hidden = F.conv2d(hidden, weights[f"{own}.conv.weight"], stride=2, padding=1)
            scale, shift = weights[f"{own}.norm.weight"], weights[f"{own}.norm.bias"]
            hidden = F.relu(F.batch_norm(hidden, None, None, scale, shift, training=True))
        logits = F.linear(hidden.flatten(1), weights["head.weight"], weights["head.bias"])
        loss = F.cross_entropy(logits, y)
        losses.append(loss.item())
        if len(losses) <= steps:
            gradients = torch.autograd.grad(loss, list(weights.values()))
            weights = {
                name: (value - 0.3 * gradient).detach().requires_grad_()
                for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
    return weights, losses


def test_layers_move_as_far_as_plain_gradient_descent_moves_them(maml, support):
    x, y = support
    changes = {one.layer: one for one in explain_adaptation(maml, maml.adapt(x, y, way=3), x, y, way=3).layers}
    fast = [inner_loop(maml, own_x, own_y, 4)[0] for own_x, own_y in zip(x, y, strict=True)]
    assert list(changes) == [
        "backbone.blocks.0.conv", "backbone.blocks.0.norm", "backbone.blocks.1.conv", "backbone.blocks.1.norm", "head",
    ]  # fmt: skip
    for layer, found in changes.items():
        names = [name for name, _ in maml.named_parameters() if name.rpartition(".")[0] == layer]
        shared = torch.cat([maml.get_parameter(name).flatten() for name in names])
        moved = [torch.cat([weights[name].flatten() for name in names]) for weights in fast]
        expected = np.mean([(one - shared).norm().item() for one in moved])
        assert found.change == pytest.approx(expected, rel=1e-6)
        assert found.norm == pytest.approx(shared.norm().item())
        assert found.relative == pytest.approx(expected / shared.norm().item(), rel=1e-6)


def test_support_losses_are_those_of_plain_gradient_descent(maml, support):
    x, y = support
    found = support_losses(maml, x, y, way=3)
    expected = np.mean([inner_loop(maml, own_x, own_y, 4)[1] for own_x, own_y in zip(x, y, strict=True)], axis=0)
    assert [one.steps for one in found] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([one.loss for one in found], expected, rtol=1e-6)


def test_of_many_steps_some_are_shown_with_the_first_and_the_last(make_double, support):
    x, y = support
    found = support_losses(make_double("maml", eval_steps=30, inner_lr=0.01), x, y, way=3)
    assert [found[0].steps, found[1].steps, found[-1].steps] == [0, 1, 30]
    assert len(found) <= SHOWN_STEPS + 1


def test_a_learner_that_is_asked_for_no_steps_can_say_that_nothing_moves(make_double, support):
    learner = make_double("finetune", eval_steps=0)
    found = explain_adaptation(learner, learner.adapt(*support, way=3), *support, way=3)
    assert found.support_losses == ()
    assert [one.layer for one in found.layers] == [*sorted({*CONVOLUTIONS, *NORMS}), "head"]
    assert all(one.change == one.relative == 0 for one in found.layers)


def test_the_relative_change_is_the_mean_of_each_episodes_own(make_double, support):
    learner = make_double("protomaml", eval_steps=2, inner_lr=0.3)
    head = layer_changes(learner.unmoved(*support, way=3), learner.adapt(*support, way=3))[-1]
    alone = []
    for x, y in zip(*support, strict=True):
        own = x[None], y[None]
        alone.append(layer_changes(learner.unmoved(*own, way=3), learner.adapt(*own, way=3))[-1])
    assert head.layer == "head"
    assert head.relative == pytest.approx(np.mean([one.change / one.norm for one in alone]))
    assert head.relative != pytest.approx(head.change / head.norm, rel=1e-3)


def test_a_head_that_starts_at_zero_has_no_relative_change(maml, support):
    with torch.no_grad():
        maml.head.weight.zero_()
        maml.head.bias.zero_()
    head = layer_changes(maml.unmoved(*support, way=3), maml.adapt(*support, way=3))[-1]
    assert (head.layer, head.norm, head.relative) == ("head", 0, None)
    assert head.change > 0


def test_explaining_leaves_the_learner_as_it_was(maml, support):
    before = {name: value.clone() for name, value in maml.state_dict().items()}
    config = maml.config
    explain_adaptation(maml, maml.adapt(*support, way=3), *support, way=3)
    assert maml.config is config
    assert all(torch.equal(before[name], value) for name, value in maml.state_dict().items())


def test_a_learner_that_changes_no_weights_says_so(make_double, support):
    learner = make_double("protonet")
    found = explain_adaptation(learner, learner.adapt(*support, way=3), *support, way=3)
    assert (found.layers, found.support_losses) == ((), ())


def test_every_learner_can_say_what_adapting_moves(any_learner, support):
    with torch.no_grad():
        found = explain_adaptation(any_learner, any_learner.adapt(*support, way=3), *support, way=3)
    assert all(np.isfinite([one.change, one.norm]).all() for one in found.layers)
    assert all(np.isfinite(one.loss) for one in found.support_losses)


def test_the_layers_that_move_are_those_that_the_support_set_changes(any_learner, support):
    found = explain_adaptation(any_learner, any_learner.adapt(*support, way=3), *support, way=3)
    assert {one.layer for one in found.layers if one.change} == MOVED.get(any_learner.info.name, set())
    assert all(one.norm > 0 for one in found.layers)


@pytest.mark.parametrize("name", ["maml", "anil", "metasgd", "mamlpp", "protomaml", "reptile", "finetune"])
def test_with_rates_of_zero_nothing_moves(make_double, support, name):
    learner = make_double(name)
    learner.config = learner.config.model_copy(update={"inner_lr": 0.0})
    rates = [value for own, value in learner.named_parameters() if own.startswith("rates")]
    for rate in rates:
        rate.data.zero_()
    found = explain_adaptation(learner, learner.adapt(*support, way=3), *support, way=3)
    assert "head" in {one.layer for one in found.layers}
    assert all(one.change == 0 for one in found.layers)


def test_a_head_that_is_made_of_the_support_set_is_measured_from_what_is_made(make_double, support):
    learner = make_double("finetune", eval_steps=1, inner_optimiser="sgd", inner_lr=0.5)
    head = layer_changes(learner.unmoved(*support, way=3), learner.adapt(*support, way=3))[-1]
    assert head.layer == "head"
    assert head.norm == pytest.approx(10 * 3**0.5), "three rows of unit length, times the scale"
    assert 0 < head.change < 1


@pytest.mark.parametrize("name", [name for name, kind in sorted(LEARNERS.items()) if kind.info.variable_shape])
def test_padding_has_no_part_in_what_adapting_moves(make_double, dataset, name):
    learner = make_double(name)
    shape = EpisodeShape.of(3, "1-4", 2)
    batch = EpisodeSampler(dataset, "test", shape, seed=3).batch(0, 4)
    mask = batch.support_mask
    assert not mask.all()
    with torch.no_grad():
        state = learner.adapt(batch.support_x, batch.support_y, way=3, support_mask=mask)
        whole = explain_adaptation(learner, state, batch.support_x, batch.support_y, way=3, support_mask=mask)
        alone = []
        for number, keep in enumerate(mask):
            x, y = batch.support_x[number, None, keep], batch.support_y[number, None, keep]
            alone.append(explain_adaptation(learner, learner.adapt(x, y, way=3), x, y, way=3))
    changes = np.mean([[layer.change for layer in one.layers] for one in alone], axis=0)
    losses = np.mean([[step.loss for step in one.support_losses] for one in alone], axis=0)
    np.testing.assert_allclose([layer.change for layer in whole.layers], changes, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([step.loss for step in whole.support_losses], losses, rtol=1e-6)
