import math
import warnings

import pytest
import torch
from torch.nn import functional as F

from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, make_learner

VECTORS = DatasetSpec(
    modality="vector", example_shape=(6,), dtype="float32", mean=(0.5,) * 6, std=(0.3,) * 6, train_classes=7
)
SINUSOIDS = DatasetSpec(
    modality="vector", example_shape=(1,), dtype="float32", mean=(0.0,), std=(3.0,), train_classes=1, target_size=1
)


def perceptron(network, x):
    for layer in (0, 2, 4):
        x = x @ network[layer].weight.T + network[layer].bias
        x = x if layer == 4 else x.clamp_min(0)
    return x


def film_of(learner, vector):
    """γ and β of every layer, from a task's representation."""
    first, last = learner.film.network[0], learner.film.network[2]
    out = last.weight @ (first.weight @ vector + first.bias).clamp_min(0) + last.bias
    sizes = list(learner.film.layers.values())
    scale, shift = (torch.split(part, sizes) for part in out.chunk(2))
    return {name: (1 + gamma, beta) for name, gamma, beta in zip(learner.film.layers, scale, shift, strict=True)}


def network(learner, x, film=None, statistics=None):
    """One episode's features by torch's own layers, with FiLM after each batch norm; and the statistics."""
    weights, used = dict(learner.backbone.named_parameters()), []
    x = (x - 0.4) / 0.3
    for block in range(3):
        norm = f"blocks.{block}.norm"
        x = F.conv2d(x, weights[f"blocks.{block}.conv.weight"], padding=1)
        used.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if statistics is None else statistics[block])
        mean, variance, scale, shift = (
            value.view(-1, 1, 1) for value in (*used[-1], weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        )
        x = scale * (x - mean) / torch.sqrt(variance + 1e-5) + shift
        if film is not None:
            x = film[norm][0].view(-1, 1, 1) * x + film[norm][1].view(-1, 1, 1)
        x = F.max_pool2d(x.clamp_min(0), 2)
    return x.flatten(1), used


def naive_loss(learner, episodes, number):
    """Requeima 2019 for one episode: loops over classes and queries."""
    x, y = episodes.support_x[number], episodes.support_y[number]
    encoded = perceptron(learner.encoder, network(learner, x)[0])
    by_class = [[row for row in range(len(y)) if y[row] == label] for label in range(episodes.way)]
    film = film_of(learner, sum(sum(encoded[row] for row in rows) / len(rows) for rows in by_class) / episodes.way)
    features, statistics = network(learner, x, film)
    heads = [perceptron(learner.head, sum(features[row] for row in rows) / len(rows)) for rows in by_class]
    queries, _ = network(learner, episodes.query_x[number], film, statistics)
    losses = []
    for query, label in zip(queries, episodes.query_y[number], strict=True):
        logits = torch.stack([query @ head[:-1] + head[-1] for head in heads])
        losses.append(torch.logsumexp(logits, 0) - logits[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(make_double, make_episodes, seed):
    learner, episodes = make_double("cnp", seed, hidden=6).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([naive_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.fixture
def one_thread():
    """Small operations are slowest with several threads, where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def regression(dtype=torch.float64, **options):
    spec = LearnerSpec(learner="cnp", options=options, backbone="mlp", backbone_options={"hidden": (40, 40)})
    return make_learner(spec, SINUSOIDS, dtype=dtype)


def sinusoids(b, seed, dtype=torch.float64, points=10, queries=10):
    """Finn 2017: amplitude in [0.1, 5], phase in [0, π], x in [−5, 5]."""
    generator = torch.Generator().manual_seed(seed)
    amplitude, phase = (torch.rand(b, 1, 1, generator=generator, dtype=dtype) for _ in range(2))
    x = torch.rand(b, points + queries, 1, generator=generator, dtype=dtype) * 10 - 5
    y = (0.1 + 4.9 * amplitude) * torch.sin(x - math.pi * phase)
    return EpisodeBatch(1, x[:, :points], y[:, :points], x[:, points:], y[:, points:])


def test_of_real_targets_the_loss_is_minus_the_normals_log_likelihood():
    learner, episodes = regression(), sinusoids(3, 0)
    outcome = learner.train_episodes(episodes)
    mean, deviation = learner.predict_distribution(
        learner.adapt(episodes.support_x, episodes.support_y, way=1), episodes.query_x
    )
    expected = -torch.distributions.Normal(mean, deviation).log_prob(episodes.query_y).mean(dim=(1, 2))
    torch.testing.assert_close(outcome.losses, expected)
    torch.testing.assert_close(outcome.accuracies, -((mean - episodes.query_y) ** 2).mean(dim=(1, 2)))
    assert torch.equal(learner(episodes), mean)
    assert deviation.min() > learner.config.least_deviation


def test_of_real_targets_each_episode_is_a_naive_decoders():
    learner, episodes = regression(hidden=6), sinusoids(3, 0)
    found = learner.predict_distribution(learner.adapt(episodes.support_x, episodes.support_y, way=1), episodes.query_x)
    for number in range(3):

        def features(x, film=None):
            x = x / 3
            for layer in learner.film.layers:
                weight, bias = (learner.backbone.get_parameter(f"{layer}.{name}") for name in ("weight", "bias"))
                scale, shift = (1, 0) if film is None else film[layer]
                x = (scale * (x @ weight.T + bias) + shift).clamp_min(0)
            return x

        pairs = torch.cat([features(episodes.support_x[number]), episodes.support_y[number]], dim=1)
        representation = perceptron(learner.encoder, pairs).mean(dim=0)
        decoded = features(episodes.query_x[number], film_of(learner, representation))
        out = perceptron(learner.head, torch.cat([decoded, representation.expand(10, -1)], dim=1))
        torch.testing.assert_close(found[0][number], out[:, :1])
        torch.testing.assert_close(found[1][number], 0.1 + torch.log1p(torch.exp(out[:, 1:])))


def test_of_real_targets_padding_and_order_change_nothing_and_every_parameter_learns():
    learner, episodes = regression(), sinusoids(3, 0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    state = learner.adapt(episodes.support_x[:, order], episodes.support_y[:, order], way=1)
    torch.testing.assert_close(learner.predict(state, episodes.query_x), learner(episodes))
    mask = torch.arange(10).expand(3, -1) < 6
    padded = EpisodeBatch(
        1,
        episodes.support_x,
        episodes.support_y,
        episodes.query_x,
        episodes.query_y,
        support_mask=mask,
        query_mask=mask,
    )
    short = EpisodeBatch(
        1, episodes.support_x[:, :6], episodes.support_y[:, :6], episodes.query_x[:, :6], episodes.query_y[:, :6]
    )
    torch.testing.assert_close(learner.train_episodes(padded).losses, learner.train_episodes(short).losses)
    torch.testing.assert_close(learner.train_episodes(padded).accuracies, learner.train_episodes(short).accuracies)
    gradients = torch.autograd.grad(learner.train_episodes(episodes).losses.sum(), list(learner.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_learns_sinusoids_far_below_predicting_zero(one_thread):
    learner = regression(torch.float32)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for step in range(500):
        optimiser.zero_grad()
        learner.train_episodes(sinusoids(16, step, torch.float32)).losses.mean().backward()
        optimiser.step()
    test = sinusoids(200, 10_000, torch.float32)
    error = -learner.train_episodes(test).accuracies.mean()
    assert error < 0.25 * test.query_y.square().mean()


def test_a_learner_of_classes_says_that_it_has_no_real_targets():
    with pytest.raises(UsageError, match="versa classifies"):
        make_learner(LearnerSpec(learner="versa", backbone="mlp"), SINUSOIDS)


def test_without_layers_to_modulate_classes_are_refused_with_what_to_take():
    with pytest.raises(UsageError, match="cnp scales and shifts the layers of its backbone, identity has none: take"):
        make_learner(LearnerSpec(learner="cnp", backbone="identity"), VECTORS)


def test_without_layers_to_modulate_the_head_alone_decodes_real_targets_and_all_of_it_learns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = make_learner(LearnerSpec(learner="cnp", backbone="identity"), SINUSOIDS, dtype=torch.float64)
    losses = learner.train_episodes(sinusoids(3, 0)).losses
    assert all(gradient.any() for gradient in torch.autograd.grad(losses.sum(), list(learner.parameters())))
