from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from metalearn_core.learners.metric.matchingnet import FullContext

FULL = {"full_context": True, "processing_steps": 3}


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def gates(cell, x, hidden, memory, suffix=""):
    """One step of an LSTM by its gates, in the order in which torch keeps them."""
    rows = sum(
        getattr(cell, f"weight_{which}{suffix}") @ value + getattr(cell, f"bias_{which}{suffix}")
        for which, value in (("ih", x), ("hh", hidden))
    )
    write, forget, candidate, out = rows.chunk(4)
    memory = forget.sigmoid() * memory + write.sigmoid() * candidate.tanh()
    return out.sigmoid() * memory.tanh(), memory


def naive_g(context, features):
    """Vinyals 2016, A.2, for the features g′ (s, d) of one support set."""
    ordered = sorted(range(len(features)), key=lambda i: features[i].sum().item())
    g = [features[i] for i in range(len(features))]
    for suffix, way_round in (("_l0", ordered), ("_l0_reverse", ordered[::-1])):
        hidden = memory = torch.zeros_like(features[0])
        for i in way_round:
            hidden, memory = gates(context.over_support, features[i], hidden, memory, suffix)
            g[i] = g[i] + hidden
    return g


def naive_f(context, feature, g, steps):
    """Vinyals 2016, A.1, for the features f′ (d,) of one query."""
    hidden = memory = torch.zeros_like(feature)
    for _ in range(steps):
        attention = torch.softmax(torch.stack([hidden @ one for one in g]), dim=0)
        read = sum(weight * one for weight, one in zip(attention, g, strict=True))
        moved, memory = gates(context.reading, torch.cat([feature, read]), hidden, memory)
        hidden = moved + feature
    return hidden


def naive_loss(learner, episodes, number):
    """Vinyals 2016, equation 1, for one episode: loops over queries and support examples, torch's own layers."""
    x = (torch.cat([episodes.support_x[number], episodes.query_x[number]]) - 0.4) / 0.3
    weights = dict(learner.backbone.named_parameters())
    for block in range(3):
        x = F.conv2d(x, weights[f"blocks.{block}.conv.weight"], padding=1)
        scale, shift = weights[f"blocks.{block}.norm.weight"], weights[f"blocks.{block}.norm.bias"]
        x = F.max_pool2d(F.relu(F.batch_norm(x, None, None, scale, shift, training=True)), 2)
    labels = episodes.support_y[number]
    features, queries = x.flatten(1)[: len(labels)], x.flatten(1)[len(labels) :]
    if learner.context is not None:
        features = naive_g(learner.context, features)
        queries = [naive_f(learner.context, query, features, learner.context.steps) for query in queries]
    losses = []
    for query, truth in zip(queries, episodes.query_y[number], strict=True):
        matches = [learner.config.scale * (query @ one) / query.norm() / one.norm() for one in features]
        attention = torch.softmax(torch.stack(matches), dim=0)
        right = sum(weight for weight, label in zip(attention, labels, strict=True) if label == truth)
        losses.append(-torch.log(right))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("options", [{}, {"scale": 1.0}, FULL], ids=["plain", "paper's scale", "full context"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_every_gradient_are_those_of_a_naive_loop(make_double, make_episodes, seed, options):
    learner, episodes = make_double("matchingnet", seed, **options).train(), make_episodes(seed=seed)
    losses = learner.train_episodes(episodes).losses
    expected = torch.stack([naive_loss(learner, episodes, number) for number in range(3)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    parameters = list(learner.parameters())
    got, wanted = torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_probabilities_are_torchs_attention_with_labels_as_values(make_double):
    learner = make_double("matchingnet", scale=7.0)
    generator = torch.Generator().manual_seed(2)
    support, query = (torch.randn(2, n, 6, generator=generator, dtype=torch.float64) for n in (8, 5))
    labels = torch.arange(4).repeat(2).expand(2, -1)
    logits = learner.predict_features(learner.adapt_features(support, labels, way=4), query)
    expected = F.scaled_dot_product_attention(
        F.normalize(query, dim=-1), F.normalize(support, dim=-1), F.one_hot(labels).double(), scale=7.0
    )
    close(logits.exp(), expected)
    close(logits.softmax(dim=-1), expected)


def test_a_large_scale_gives_finite_logits_in_single_precision(make_double):
    learner = make_double("matchingnet", scale=1e4).float()
    state = learner.adapt_features(torch.eye(4).unsqueeze(0), torch.arange(4).unsqueeze(0), way=4)
    logits = learner.predict_features(state, torch.eye(4).unsqueeze(0))
    assert torch.isfinite(logits).all()
    assert (logits[0].argmax(dim=-1) == torch.arange(4)).all()


def test_in_full_context_the_order_of_the_support_set_does_not_matter(make_double, make_episodes):
    learner, episodes = make_double("matchingnet", **FULL).eval(), make_episodes()
    assert learner.info.order_invariant
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    shuffled = replace(episodes, support_x=episodes.support_x[:, order], support_y=episodes.support_y[:, order])
    close(learner(episodes), learner(shuffled))


def test_in_full_context_an_example_is_embedded_by_the_others(make_double, make_episodes):
    learner, episodes = make_double("matchingnet", **FULL).eval(), make_episodes()
    whole = learner.adapt(episodes.support_x, episodes.support_y, way=4)["support"]
    part = learner.adapt(episodes.support_x[:, :5], episodes.support_y[:, :5], way=4)["support"]
    assert (whole[:, :5] - part).abs().max() > 1e-3


def test_in_full_context_a_query_alone_gets_the_logits_that_it_gets_in_a_batch(make_double, make_episodes):
    learner, episodes = make_double("matchingnet", **FULL).eval(), make_episodes()
    state = learner.adapt(episodes.support_x, episodes.support_y, way=4)
    close(learner.predict(state, episodes.query_x)[:, 2:3], learner.predict(state, episodes.query_x[:, 2:3]))
    close(torch.cat([learner(episodes[number : number + 1]) for number in range(3)]), learner(episodes))


@pytest.mark.parametrize("training", [False, True])
def test_in_full_context_masked_examples_are_as_if_they_were_not_there(make_double, make_episodes, training):
    learner, episodes = make_double("matchingnet", **FULL).train(training), make_episodes()
    mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(4)) < 0.6
    logits = learner(replace(episodes, support_mask=mask))
    losses = learner.train_episodes(replace(episodes, support_mask=mask, query_mask=present(episodes, mask))).losses
    for number in range(3):
        keep, asked = mask[number], present(episodes, mask)[number]
        alone = replace(
            episodes[number : number + 1],
            support_x=episodes.support_x[number, None, keep],
            support_y=episodes.support_y[number, None, keep],
        )
        close(logits[number, None], learner(alone))
        answered = replace(alone, query_x=alone.query_x[:, asked], query_y=alone.query_y[:, asked])
        close(losses[number, None], learner.train_episodes(answered).losses)


def present(episodes, mask):
    """Return which queries (b, q) are of a class that has support under a mask (b, s)."""
    return torch.stack(
        [
            torch.isin(y, support[keep])
            for y, support, keep in zip(episodes.query_y, episodes.support_y, mask, strict=True)
        ]
    )


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full context"])
def test_a_class_without_support_leaves_gradients_finite(make_double, make_episodes, options):
    learner, episodes = make_double("matchingnet", **options).train(), make_episodes()
    absent = replace(episodes, support_mask=episodes.support_y != 1, query_mask=episodes.query_y != 1)
    gradients = torch.autograd.grad(learner.train_episodes(absent).losses.sum(), list(learner.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_only_full_context_has_weights_of_its_own(make_double):
    assert make_double("matchingnet").context is None
    assert isinstance(make_double("matchingnet", **FULL).context, FullContext)
