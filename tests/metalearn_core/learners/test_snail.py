import math
from dataclasses import replace

import pytest
import torch

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, learner_class, make_learner


def dense_block(layer, sequence, dilation):
    """Mishra 2018, DenseBlock(R, D), element by element; the convolution's taps are R elements apart, zeros before."""
    out = []
    for position, x in enumerate(sequence):
        before = sequence[position - dilation] if position >= dilation else torch.zeros_like(x)
        both = layer.present.weight @ x + layer.present.bias + layer.past.weight @ before
        half = len(both) // 2
        out.append(torch.cat([x, torch.tanh(both[:half]) * torch.sigmoid(both[half:])]))
    return out


def attention_block(layer, sequence):
    """AttentionBlock(K, V), element by element: each looks at itself and at what came before."""
    out = []
    for position, x in enumerate(sequence):
        query = layer.query(x)
        scores = [query @ layer.key(other) / math.sqrt(len(query)) for other in sequence[: position + 1]]
        share = torch.softmax(torch.stack(scores), dim=0)
        read = sum(part * layer.value(other) for part, other in zip(share, sequence, strict=False))
        out.append(torch.cat([x, read]))
    return out


def naive_logits(learner, support, labels, query):
    """The whole sequence of one episode and one query."""
    hot = torch.eye(4).double()
    sequence = [torch.cat([x, hot[label]]) for x, label in zip(support, labels, strict=True)]
    sequence.append(torch.cat([query, torch.zeros(4).double()]))
    layers, dilations = iter(learner.layers), [1, 2, 4, 8]  # 4 classes, 2 shots: T = 9
    sequence = attention_block(next(layers), sequence)
    for _ in range(2):
        for dilation in dilations:
            sequence = dense_block(next(layers), sequence, dilation)
        sequence = attention_block(next(layers), sequence)
    assert next(layers, None) is None
    return learner.output(sequence[-1])


SMALL = {"filters": 6, "keys": (4, 5, 6), "values": (3, 4, 5)}


def test_logits_and_gradients_are_those_of_each_query_in_a_whole_sequence_of_its_own(make_double, make_episodes):
    learner, episodes = make_double("snail", **SMALL).eval(), make_episodes(b=2)
    support, query = (torch.stack([learner.embed(x) for x in xs]) for xs in (episodes.support_x, episodes.query_x))
    logits = learner(episodes)
    expected = torch.stack(
        [torch.stack([naive_logits(learner, support[n], episodes.support_y[n], q) for q in query[n]]) for n in range(2)]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
    parameters = list(learner.parameters())
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double()
    got = torch.autograd.grad((logits * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("way", "shot", "blocks"), [(5, 1, 3), (4, 2, 4), (5, 5, 5), (20, 1, 5), (3, 1, 2)])
def test_dilations_are_the_powers_of_two_below_the_length_of_the_sequence(images, way, shot, blocks):
    spec = LearnerSpec(learner="snail", options={"shot": shot}, backbone_options={"width": 5, "blocks": 3})
    learner = make_learner(spec, images, way=way)
    assert blocks == math.ceil(math.log2(way * shot + 1))
    assert [getattr(layer, "dilation", None) for layer in learner.layers] == [
        *[None],
        *[2**i for i in range(blocks)] + [None],
        *[2**i for i in range(blocks)] + [None],
    ]


def test_another_shape_is_refused_with_what_it_can_do(make_double, make_episodes):
    learner, episodes = make_double("snail"), make_episodes()
    mask = torch.ones(3, 8, dtype=torch.bool)
    for wrong, words in (
        (make_episodes(way=3), "got 3-way episodes"),
        (make_episodes(shot=1), "got support sets of 4 examples"),
        (replace(episodes, support_mask=mask), "got episodes of varying shape"),
    ):
        with pytest.raises(UsageError, match=f"trained for 4-way 2-shot episodes, {words}"):
            learner(wrong)


def test_another_shot_is_refused_before_training_and_after_it():
    kind = learner_class("snail")
    with pytest.raises(UsageError, match=r"got episodes of 5: set snail\.shot=5 when it is trained"):
        kind.train_shape(EpisodeShape(5, 5, 15), kind.Config())
    assert kind.train_shape(EpisodeShape(5, 5, 15), kind.Config(shot=5, train_query=7)) == EpisodeShape(5, 5, 7)
