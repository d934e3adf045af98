import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metalearn_core.explanation.adaptation import SHOWN_STEPS, explain_adaptation, layer_changes, support_losses


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


def test_a_head_that_starts_at_zero_has_no_relative_change(maml, support):
    with torch.no_grad():
        maml.head.weight.zero_()
        maml.head.bias.zero_()
    head = layer_changes(maml, maml.adapt(*support, way=3))[-1]
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
