"""Answers on test episodes, right and wrong ones, with the support examples that they lie nearest to."""

from collections.abc import Iterator

import torch

from metalearn_core.data.episodes import EpisodeIndex
from metalearn_core.data.manifest import Record
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.explanation.neighbours import nearest_support
from metalearn_core.learners.contract import Learner

LOOKED_AT = 24
SHOWN_EACH = 4
NEIGHBOURS = 5


class Example(Record):
    """An example by its row in the dataset's store, with its class and quarter turns."""

    class_id: int
    rotation: int
    row: int


class NearExample(Record):
    """A support example, and how far it is from the query."""

    example: Example
    distance: float


class Answer(Record):
    """What the learner said of one query, and what it may have gone by.

    Attributes:
        episode: its number in the stream.
        query: the example.
        predicted_id, predicted_rotation: the class that it was taken for.
        probability: of that class.
        right: that is its class.
        nearest: support examples, the nearest first.
        to_own, to_predicted: distances to the prototypes of both classes; None where the learner keeps none.
    """

    episode: int
    query: Example
    predicted_id: int
    predicted_rotation: int
    probability: float
    right: bool
    nearest: tuple[NearExample, ...]
    to_own: float | None = None
    to_predicted: float | None = None


def explain_answers(learner: Learner, sampler: EpisodeSampler) -> tuple[Answer, ...]:
    """Return the first four wrong and the first four right answers of a stream of episodes, one an episode and class.

    They are not chosen for what they show. Fewer, where the first 24 episodes have fewer.

    Args:
        learner: in evaluation mode, inductive.
        sampler: of the stream.
    """
    found: dict[bool, list[Answer]] = {False: [], True: []}
    shown: set[tuple[int, int]] = set()
    for episode in range(LOOKED_AT):
        wanted = {right for right, of_kind in found.items() if len(of_kind) < SHOWN_EACH}
        if not wanted:
            break
        for answer in _answers(learner, sampler, episode):
            own = (answer.query.class_id, answer.query.rotation)
            if answer.right in wanted and own not in shown:
                found[answer.right].append(answer)
                shown.add(own)
                wanted.discard(answer.right)
    return (*found[False], *found[True])


@torch.no_grad()
def _answers(learner: Learner, sampler: EpisodeSampler, episode: int) -> Iterator[Answer]:
    """Yield the answers to the queries of one episode, in their order."""
    index = sampler.index(episode, 1)
    batch = sampler.gather(index).to(learner.mean.device)
    state = learner.adapt(batch.support_x, batch.support_y, way=batch.way)
    probabilities = learner.predict(state, batch.query_x)[0].double().softmax(dim=-1)
    near = nearest_support(learner, state, batch.support_x[0], batch.query_x[0], NEIGHBOURS)
    support = _support_rows(index)
    columns = batch.query_y[0].tolist()
    for number, (own, row) in enumerate(zip(columns, index.query_index.flatten().tolist(), strict=True)):
        predicted = int(probabilities[number].argmax())
        prototypes = None if near.prototype_distances is None else near.prototype_distances[number]
        yield Answer(
            episode=episode,
            query=_example(index, own, row),
            predicted_id=int(index.class_id[0, predicted]),
            predicted_rotation=int(index.rotation[0, predicted]),
            probability=float(probabilities[number, predicted]),
            right=predicted == own,
            nearest=tuple(
                NearExample(example=_example(index, *support[place]), distance=distance)
                for place, distance in zip(near.nearest[number].tolist(), near.distances[number].tolist(), strict=True)
            ),
            to_own=None if prototypes is None else float(prototypes[own]),
            to_predicted=None if prototypes is None else float(prototypes[predicted]),
        )


def _support_rows(index: EpisodeIndex) -> list[tuple[int, int]]:
    """Return the column and the row of each support example of one episode, in the order in which they are given."""
    shot = index.support_index.shape[-1]
    order = index.support_order[0]
    rows = index.support_index.flatten()[order].tolist()
    return list(zip((order // shot).tolist(), rows, strict=True))


def _example(index: EpisodeIndex, column: int, row: int) -> Example:
    return Example(class_id=int(index.class_id[0, column]), rotation=int(index.rotation[0, column]), row=row)
