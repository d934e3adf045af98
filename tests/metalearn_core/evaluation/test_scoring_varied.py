"""Scores of padded episodes are those of the same episodes cut to what they hold."""

import numpy as np
import pytest
import torch

from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler, class_table
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.scoring import Scorer, evaluate_episodes
from metalearn_core.learners import LearnerSpec, make_learner

SHAPES = {
    "protonet": EpisodeShape.of("3-9", "1-5", 4),
    "transfer": EpisodeShape.of("3-9", "1-5", 4),
    "maml": EpisodeShape.of(5, "1-5", 4),
}
EPISODES = 9


@pytest.fixture(params=sorted(SHAPES))
def learner(request, dataset):
    return make_learner(
        LearnerSpec(learner=request.param, backbone_options={"width": 8}), dataset.spec, way=5, seed=1
    ).eval()


def cut(batch: EpisodeBatch, classes: int) -> EpisodeBatch:
    """Return one padded episode without its padding."""
    support, query = batch.support_mask[0], batch.query_mask[0]
    return EpisodeBatch(
        way=classes,
        support_x=batch.support_x[:, support],
        support_y=batch.support_y[:, support],
        query_x=batch.query_x[:, query],
        query_y=batch.query_y[:, query],
    )


def test_scores_are_those_of_episodes_without_padding(dataset, learner):
    stream = EpisodeSampler(dataset, "test", SHAPES[learner.info.name], seed=3)
    scores = evaluate_episodes(learner, stream, EPISODES)
    for number in range(EPISODES):
        index = stream.index(number, 1)
        kept = index.class_id[0] >= 0
        classes = (4 * index.class_id + index.rotation)[0, kept].tolist()
        episode = cut(stream.batch(number, 1), len(classes))
        with torch.no_grad():
            logits = learner(episode)[0].double()
        right = (logits.argmax(dim=1) == episode.query_y[0]).numpy()
        assert scores.accuracy[number] == pytest.approx(right.mean())
        loss = torch.nn.functional.cross_entropy(logits, episode.query_y[0])
        assert scores.loss[number] == pytest.approx(float(loss), rel=1e-3, abs=1e-5)
        found = scores.classes[number] >= 0
        assert scores.classes[number, found].tolist() == classes
        asked = torch.bincount(episode.query_y[0], minlength=len(classes))
        assert scores.queries[number, found].tolist() == asked.tolist()
        assert scores.correct[number, found].tolist() == [
            int(right[episode.query_y[0].numpy() == label].sum()) for label in range(len(classes))
        ]
        assert not scores.queries[number, ~found].any()
    asked = scores.queries.sum()
    assert scores.calibration[0].sum() == asked
    assert len(scores.confused) == asked - scores.correct.sum()
    assert (scores.confused >= 0).all()


def test_embedding_once_gives_the_numbers_of_whole_episodes(dataset, protonet):
    stream = EpisodeSampler(dataset, "test", SHAPES["protonet"], seed=3)
    with Scorer(protonet) as fast, Scorer(protonet) as slow:
        slow._embed_once = False
        one, other = fast.score(stream, 40), slow.score(stream, 40)
    for name in ("accuracy", "classes", "queries", "correct", "confused"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)


@pytest.mark.parametrize("embed_once", [True, False])
def test_a_range_beyond_the_classes_is_scored_with_those_that_there_are(dataset, protonet, embed_once):
    stream = EpisodeSampler(dataset, "test", EpisodeShape.of("3-1000000", "1-5", 100_000), seed=3)
    with Scorer(protonet) as scorer:
        scorer._embed_once = embed_once
        scores = scorer.score(stream, EPISODES)
    assert scores.classes.shape == (EPISODES, len(class_table(dataset, "test")[0]))


def test_an_evaluation_counts_each_query_once(dataset, protonet):
    protocol = Protocol(way="3-9", shot="1-5", query=4, episodes=60)
    result = evaluate(protonet, dataset, protocol)
    scores = evaluate_episodes(protonet, EpisodeSampler(dataset, "test", protocol.shape, seed=0), 60)
    assert result.accuracy == pytest.approx(scores.accuracy.mean())
    assert sum(one.queries for one in result.by_class) == scores.queries.sum()
    right = sum(one.accuracy * one.queries for one in result.by_class)
    assert right == pytest.approx(scores.correct.sum())
    assert all(one.count <= one.queries for one in result.confusions)
    assert result.ci95_classes >= result.ci95
    assert set(result.by_domain) == {"wide", "broad", "tiny"}
    assert result.by_domain_reason == {"tiny": result.by_domain_reason["tiny"]}
    ways = (scores.classes >= 0).sum(axis=1)
    assert scores.chance == pytest.approx((1 / ways).mean())
    assert result.protocol.model_dump()["way"] == "3-9"


def test_a_learner_of_fixed_way_says_that_it_takes_no_range(dataset, maml):
    with pytest.raises(UsageError, match="way 3-9: maml is built for one number of classes"):
        evaluate(maml, dataset, Protocol(way="3-9"))
