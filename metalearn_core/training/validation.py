"""Validation accuracy on a fixed set of episodes, in the batch-norm mode that is configured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metalearn_core.data.sampler import QUARTER_TURNS, EpisodeSampler, gather_examples
from metalearn_core.learners.contract import EmbeddingLearner, Learner
from metalearn_core.training.engine import Engine

EMBEDDED_AT_ONCE = 512
EPISODES_AT_ONCE = 8

Checkpoint = Callable[[], None]


def validate(learner: Learner, sampler: EpisodeSampler, episodes: int, engine: Engine, pause: Checkpoint) -> Tensor:
    """Return the accuracy of each of the sampler's first episodes (episodes,), float64.

    Args:
        learner: left in the mode, training or not, that it is in.
        sampler: of validation episodes.
        episodes: how many.
        engine: whose threads do the work.
        pause: called now and then; may raise, to stop.
    """
    with _evaluating(learner), torch.no_grad():
        if isinstance(learner, EmbeddingLearner) and learner.batch_norm == "inductive":
            return _by_embedding(learner, sampler, episodes, engine, pause)
        return _by_episode(learner, sampler, episodes, engine, pause)


def _by_embedding(
    learner: EmbeddingLearner,
    sampler: EpisodeSampler,
    episodes: int,
    engine: Engine,
    pause: Checkpoint,
) -> Tensor:
    """Embed each image once, whatever the number of episodes that it is in."""
    index = sampler.index(0, episodes)
    way, shot, query = index.class_id.shape[1], index.support_index.shape[2], index.query_index.shape[2]
    turns = index.rotation.unsqueeze(-1)
    support, queries = (rows * QUARTER_TURNS + turns for rows in (index.support_index, index.query_index))
    keys, place = torch.unique(torch.cat([support, queries], dim=2), return_inverse=True)
    features = []
    for chunk in keys.split(EMBEDDED_AT_ONCE):
        pause()
        turned = chunk % QUARTER_TURNS if sampler.turning else None
        with engine.precision():
            features.append(learner.embed(gather_examples(sampler.dataset.examples, chunk // QUARTER_TURNS, turned)))
    table = torch.cat(features)
    correct = []
    for part in place.split(EPISODES_AT_ONCE * 32):
        pause()
        labels = torch.arange(way).view(1, way, 1).expand(len(part), way, shot + query)
        state = learner.adapt_features(table[part[:, :, :shot].flatten(1)], labels[:, :, :shot].flatten(1), way=way)
        logits = learner.predict_features(state, table[part[:, :, shot:].flatten(1)])
        correct.append((logits.argmax(dim=-1) == labels[:, :, shot:].flatten(1)).double().mean(dim=1))
    return torch.cat(correct)


def _by_episode(learner: Learner, sampler: EpisodeSampler, episodes: int, engine: Engine, pause: Checkpoint) -> Tensor:
    def accuracy(number: int) -> Tensor:
        first = number * EPISODES_AT_ONCE
        batch = sampler.batch(first, min(EPISODES_AT_ONCE, episodes - first))
        with torch.no_grad(), engine.precision():
            logits: Tensor = learner(batch)
        return (logits.argmax(dim=-1) == batch.query_y).double().mean(dim=1)

    return torch.cat(engine.map(accuracy, -(-episodes // EPISODES_AT_ONCE), between=pause))


@contextmanager
def _evaluating(learner: Learner) -> Iterator[None]:
    training = learner.training
    learner.eval()
    try:
        yield
    finally:
        learner.train(training)
