"""What can be seen of a trained learner on a dataset: a map of its classes, some answers, and what adapting moves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Record
from metalearn_core.evaluation.evaluate import Protocol, check_fit, make_sampler
from metalearn_core.explanation.adaptation import Adaptation, explain_adaptation
from metalearn_core.explanation.answers import Answer, explain_answers
from metalearn_core.explanation.embedding_map import EmbeddingMap, embedding_map
from metalearn_core.learners.contract import Learner
from metalearn_core.memory import kept_memory

ADAPTED_EPISODES = 4


class LearnerExplanation(Record):
    """What can be seen of a learner.

    Attributes:
        answers: to queries of test episodes, wrong ones first.
        adaptation: the mean over the first four episodes.
        map: of the split's classes; None where there are too few.
    """

    answers: tuple[Answer, ...]
    adaptation: Adaptation
    map: EmbeddingMap | None


def explain_learner(learner: Learner, dataset: EpisodeDataset, protocol: Protocol) -> LearnerExplanation:
    """Explain a learner of classes on the episodes of a protocol, always inductively; the same each time.

    Args:
        learner: on the device where it is to work; its mode and batch-norm mode are put back at the end.
        dataset: whose examples are those the learner was made for.
        protocol: which episodes.

    Raises:
        UsageError: before any work: what `evaluate` raises for examples, way and shape that do not fit.
    """
    check_fit(learner, dataset, protocol)
    sampler = make_sampler(learner, dataset, protocol)
    with _inductive(learner), kept_memory(), torch.no_grad():
        first = sampler.batch(0, min(ADAPTED_EPISODES, protocol.episodes)).to(learner.mean.device)
        state = learner.adapt(first.support_x, first.support_y, way=first.way)
        return LearnerExplanation(
            answers=explain_answers(learner, sampler),
            adaptation=explain_adaptation(learner, state, first.support_x, first.support_y, way=first.way),
            map=embedding_map(learner, dataset, protocol.split, adapted=state),
        )


@contextmanager
def _inductive(learner: Learner) -> Iterator[None]:
    """Put a learner in evaluation mode, its batch norm inductive, and back."""
    training, batch_norm = learner.training, learner.batch_norm
    learner.eval()
    learner.batch_norm = "inductive"
    try:
        yield
    finally:
        learner.train(training)
        learner.batch_norm = batch_norm
