import gc

import pytest
import torch

from metalearn_core.errors import UsageError
from metalearn_core.learners import learner_class
from tests.metalearn_core.learners.naive_network import cross_entropy, network


def naive_loss(learner, episodes, number, steps, first_order, inductive):
    """Finn 2017, algorithm 1, for one task, with α = 0.3."""
    support_x, query_x = ((x[number] - 0.4) / 0.3 for x in (episodes.support_x, episodes.query_x))
    theta = dict(learner.named_parameters())
    for _ in range(steps):
        loss = cross_entropy(network(theta, support_x)[0], episodes.support_y[number])
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        if first_order:
            gradients = [gradient.detach() for gradient in gradients]
        theta = {name: value - 0.3 * g for (name, value), g in zip(theta.items(), gradients, strict=True)}
    statistics = network(theta, support_x)[1] if inductive else None
    return cross_entropy(network(theta, query_x, statistics)[0], episodes.query_y[number])


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(
    make_double, make_episodes, seed, steps, first_order, batch_norm
):
    learner = make_double(
        "maml", seed, inner_lr=0.3, inner_steps=steps, first_order=first_order, batch_norm=batch_norm
    ).train()
    episodes = make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack(
        [naive_loss(learner, episodes, n, steps, first_order, batch_norm == "inductive") for n in range(3)]
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_backbone_without_derivatives_by_hand_gives_the_same_gradients(
    make_double, make_episodes, gradients_both_ways, first_order
):
    learner = make_double("maml", inner_steps=2, first_order=first_order).train()
    by_hand, by_autograd = gradients_both_ways(learner, make_episodes())
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-9, atol=1e-12)


def test_evaluation_takes_the_evaluation_steps(make_double, make_episodes):
    learner, episodes = make_double("maml", inner_lr=0.3, inner_steps=1, eval_steps=3).eval(), make_episodes()
    expected = torch.stack([naive_loss(learner, episodes, number, 3, False, True) for number in range(3)])
    torch.testing.assert_close(learner.train_episodes(episodes).losses, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_adapts_without_gradients_around_it_and_keeps_nothing_alive(make_double, make_episodes, context):
    learner, episodes = make_double("maml", eval_steps=2).eval(), make_episodes()
    expected = learner(episodes).detach()
    with context():
        state = learner.adapt(make_episodes().support_x, episodes.support_y, way=4)
        torch.testing.assert_close(learner.predict(state, episodes.query_x), expected)
    assert not any(value.requires_grad for value in state.values())
    gc.collect()
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_shared_weights_stay_as_they_were(make_double, make_episodes):
    learner = make_double("maml").train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.train_episodes(make_episodes()).losses.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_another_way_than_its_own_is_refused(make_double, make_episodes):
    episodes = make_episodes(way=3)
    with pytest.raises(UsageError, match="4-way episodes, got 3-way"):
        make_double("maml")(episodes)


def test_a_head_that_starts_at_zero_prefers_no_class(make_double, make_episodes):
    learner = make_double("maml", randomise=False)
    assert learner.head.weight.abs().max() == learner.head.bias.abs().max() == 0
    assert learner_class("maml").info.fixed_way
