import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn import functional as F

from metalearn_core.learners.model.versa import normal_draws


def amortised(learner, pooled):
    """The mean and variance of one class's weights, by the layers' formulas."""
    hidden = pooled
    for layer in (0, 2):
        weight, bias = learner.amortisation[layer].weight, learner.amortisation[layer].bias
        hidden = weight @ hidden + bias
        hidden = torch.where(hidden > 0, hidden, torch.exp(hidden) - 1)
    out = learner.amortisation[4].weight @ hidden + learner.amortisation[4].bias
    size = len(pooled) + 1
    return out[:size] + torch.cat([pooled, pooled.new_zeros(1)]), torch.exp(out[size:])


def naive_loss(learner, episodes, number):
    """Gordon 2019 for one episode: loops over classes, draws and queries."""
    x = torch.cat([episodes.support_x[number], episodes.query_x[number]])
    features = learner.embed_by_episode(x[None])[0][0]
    size = len(episodes.support_y[number])
    weights = []
    for label in range(episodes.way):
        rows = [features[row] for row in range(size) if episodes.support_y[number, row] == label]
        weights.append(amortised(learner, sum(rows) / len(rows)))
    by_bias = sorted(range(episodes.way), key=lambda label: weights[label][0][-1].item())
    draws = normal_draws(learner.config.samples, episodes.way, torch.device("cpu"))
    losses = []
    for row, label in enumerate(episodes.query_y[number]):
        h = torch.cat([features[size + row], torch.ones(1).double()])
        likelihood = 0
        for draw in draws:
            logits = [
                h @ mean + torch.sqrt(h**2 @ variance) * draw[by_bias.index(c)]
                for c, (mean, variance) in enumerate(weights)
            ]
            likelihood = likelihood + torch.softmax(torch.stack(logits), dim=0)[label]
        losses.append(-torch.log(likelihood / len(draws)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(make_double, make_episodes, seed):
    learner, episodes = make_double("versa", seed, hidden=7, samples=5).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([naive_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def state_and_query(samples, way, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, variance = (torch.randn(1, way, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    draws = normal_draws(samples, way, torch.device("cpu"))[None]
    state = {"mean": mean, "variance": variance.exp(), "draws": draws, "present": torch.ones(1, way, dtype=torch.bool)}
    return state, torch.randn(1, 2, 3, generator=generator, dtype=torch.float64)


def test_with_many_samples_it_is_the_average_over_weights_drawn_at_random(make_double):
    state, query = state_and_query(samples=65_536, way=4)
    found = make_double("versa", samples=65_536).predict_features(state, query).exp()
    noise = torch.randn(400_000, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = state["mean"][0] + state["variance"][0].sqrt() * noise
    logits = torch.einsum("qd,lcd->lqc", F.pad(query[0], (0, 1), value=1.0), weights)
    torch.testing.assert_close(found[0], logits.softmax(dim=-1).mean(dim=0), atol=4e-3, rtol=0)


@pytest.mark.parametrize(("samples", "error"), [(10, 0.1), (1000, 0.01), (65_536, 0.001)])
def test_of_two_classes_it_nears_the_integral_of_the_logistic_function(make_double, samples, error):
    state, query = state_and_query(samples, way=2)
    found = make_double("versa", samples=samples).predict_features(state, query).exp()[0, :, 0]
    h = F.pad(query[0], (0, 1), value=1.0)
    mean = (h @ (state["mean"][0, 0] - state["mean"][0, 1])).numpy()
    variance = (h**2 @ state["variance"][0].sum(dim=0)).numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    expected = expit(mean[:, None] + np.sqrt(variance)[:, None] * nodes) @ weights / weights.sum()
    assert np.abs(found.numpy() - expected).max() < error


def test_every_class_has_the_same_draws_in_another_order_whatever_the_way():
    draws = normal_draws(50, 7, torch.device("cpu"))
    ordered = draws.sort(dim=0).values
    torch.testing.assert_close(ordered, ordered[:, :1].expand(-1, 7))
    torch.testing.assert_close(draws.mean(dim=0), torch.zeros(7).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(draws.var(dim=0, correction=0), torch.ones(7).double())
    assert torch.equal(normal_draws(50, 3, torch.device("cpu")), draws[:, :3])


def test_the_orders_of_the_draws_are_independent():
    correlation = torch.corrcoef(normal_draws(1000, 40, torch.device("cpu")).T) - torch.eye(40)
    assert correlation.abs().max() < 5 / 1000**0.5
    assert abs(correlation.square().sum() / (40 * 39) * 1000 - 1) < 0.2


def test_a_class_without_support_changes_nothing_for_the_others(make_double, make_episodes):
    learner, episodes = make_double("versa").eval(), make_episodes()
    support = torch.stack([learner.embed(x) for x in episodes.support_x])
    query = torch.stack([learner.embed(x) for x in episodes.query_x])
    without, with_two_more = (
        learner.predict_features(learner.adapt_features(support, episodes.support_y, way=way), query) for way in (4, 6)
    )
    torch.testing.assert_close(with_two_more[..., :4], without)
    assert torch.isneginf(with_two_more[..., 4:]).all()


def test_a_class_without_support_leaves_the_gradients_numbers(make_double, make_episodes):
    learner, episodes = make_double("versa").train(), make_episodes()
    absent = episodes.support_y != 1
    logits = learner.predict(
        learner.adapt(episodes.support_x, episodes.support_y, way=4, support_mask=absent), episodes.query_x
    )
    gradients = torch.autograd.grad(logits[..., [0, 2, 3]].sum(), list(learner.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
