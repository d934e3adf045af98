"""What can be seen of a trained learner on a dataset: a map of its classes, some answers, and what adapting moves."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Record
from metalearn_core.data.subset import without_classes
from metalearn_core.evaluation.evaluate import Protocol, check_fit, make_sampler
from metalearn_core.explanation.adaptation import Adaptation, explain_adaptation
from metalearn_core.explanation.answers import Answer, Example, explain_answers
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
        decides_by_distance: the distances of the answers are what the learner decides by: see `Learner`.
    """

    answers: tuple[Answer, ...]
    adaptation: Adaptation
    map: EmbeddingMap | None
    decides_by_distance: bool


def explain_learner(
    learner: Learner, dataset: EpisodeDataset, protocol: Protocol, seen: Collection[str] = ()
) -> LearnerExplanation:
    """Explain a learner of classes on the episodes of a protocol, always inductively; the same each time.

    Args:
        learner: on the device where it is to work; its mode and batch-norm mode are put back at the end.
        dataset: whose examples are those the learner was made for.
        protocol: which episodes.
        seen: content hashes of classes of the split that are left out, since the learner was trained on them.

    Raises:
        UsageError: before any work: what `evaluate` raises for examples, way and shape that do not fit.
    """
    check_fit(learner, dataset, protocol)
    left = without_classes(dataset, protocol.split, seen)
    sampler = make_sampler(learner, left, protocol)
    with _inductive(learner), kept_memory(), torch.no_grad():
        first = sampler.batch(0, min(ADAPTED_EPISODES, protocol.episodes)).to(learner.mean.device)
        x, y, mask = first.support_x, first.support_y, first.support_mask
        state = learner.adapt(x, y, way=first.way, support_mask=mask)
        explanation = LearnerExplanation(
            answers=explain_answers(learner, sampler),
            adaptation=explain_adaptation(learner, state, x, y, way=first.way, support_mask=mask),
            map=embedding_map(learner, left, protocol.split, adapted=state),
            decides_by_distance=learner.decides_by_distance,
        )
    return explanation if left is dataset else _numbered_as(dataset, left, explanation)


def _numbered_as(dataset: EpisodeDataset, left: EpisodeDataset, explanation: LearnerExplanation) -> LearnerExplanation:
    """Return the explanation with classes by their numbers in the whole dataset, not in what was left of it."""
    name = {(entry.split, entry.digest, entry.name): entry.id for entry in dataset.manifest.classes}
    number = [name[entry.split, entry.digest, entry.name] for entry in left.manifest.classes]

    def example(one: Example) -> Example:
        return one.model_copy(update={"class_id": number[one.class_id]})

    def answer(one: Answer) -> Answer:
        nearest = tuple(near.model_copy(update={"example": example(near.example)}) for near in one.nearest)
        changes = {"query": example(one.query), "predicted_id": number[one.predicted_id], "nearest": nearest}
        return one.model_copy(update=changes)

    found = explanation.map
    if found is not None:
        points = tuple(point.model_copy(update={"class_id": number[point.class_id]}) for point in found.points)
        found = found.model_copy(update={"points": points})
    return explanation.model_copy(update={"answers": tuple(map(answer, explanation.answers)), "map": found})


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
