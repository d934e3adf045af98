"""Answers on test episodes, right and wrong ones, with the support examples that they lie nearest to."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch, EpisodeIndex
from metalearn_core.data.manifest import Record
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.explanation.neighbours import compared, nearest_support
from metalearn_core.learners.contract import Learner, State

LOOKED_AT = 24
ANSWERED_AT_ONCE = 8
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


@dataclass(frozen=True)
class _Answered:
    """One episode with the learner's answers: index and batch of one, state, probabilities (q, way)."""

    number: int
    index: EpisodeIndex
    batch: EpisodeBatch
    state: State
    probabilities: Tensor


@torch.no_grad()
def explain_answers(learner: Learner, sampler: EpisodeSampler) -> tuple[Answer, ...]:
    """Return the first four wrong and the first four right answers of a stream of episodes, one an episode and class.

    They are not chosen for what they show. Fewer, where the first 24 episodes have fewer.

    Args:
        learner: in evaluation mode, inductive.
        sampler: of the stream.
    """
    found: dict[bool, list[Answer]] = {False: [], True: []}
    shown: set[tuple[int, int]] = set()
    for episode in _answered(learner, sampler):
        wanted = {right for right, of_kind in found.items() if len(of_kind) < SHOWN_EACH}
        if not wanted:
            break
        own, mask = episode.batch.query_y[0].tolist(), episode.batch.query_mask
        predicted = episode.probabilities.argmax(dim=-1).tolist()
        asked = [True] * len(own) if mask is None else mask[0].tolist()
        for place, (own_column, column) in enumerate(zip(own, predicted, strict=True)):
            if not asked[place]:
                continue
            identity = int(episode.index.class_id[0, own_column]), int(episode.index.rotation[0, own_column])
            if (own_column == column) in wanted and identity not in shown:
                found[own_column == column].append(_answer(learner, episode, place, own_column, column))
                shown.add(identity)
                wanted.discard(own_column == column)
    return (*found[False], *found[True])


def _answered(learner: Learner, sampler: EpisodeSampler) -> Iterator[_Answered]:
    """Yield the first episodes of a stream, answered a few at a time."""
    for first in range(0, LOOKED_AT, ANSWERED_AT_ONCE):
        index = sampler.index(first, ANSWERED_AT_ONCE)
        batch = sampler.gather(index).to(learner.mean.device)
        state = learner.adapt(batch.support_x, batch.support_y, way=batch.way, support_mask=batch.support_mask)
        probabilities = learner.predict(state, batch.query_x, batch.query_mask).double().softmax(dim=-1)
        for number in range(ANSWERED_AT_ONCE):
            own = slice(number, number + 1)
            yield _Answered(
                first + number,
                index[own],
                batch[own],
                {name: value[own] for name, value in state.items()},
                probabilities[number],
            )


def _answer(learner: Learner, episode: _Answered, place: int, own: int, predicted: int) -> Answer:
    """Explain the answer to the query at a place of an episode: its own column, and the one it was taken for."""
    index, batch = episode.index, episode.batch
    support_x = batch.support_x[0]
    if batch.support_mask is not None:
        support_x = support_x[batch.support_mask[0]]  # padding comes last: the others keep their places
    compared_support = compared(learner, episode.state, support_x)
    query = compared(learner, episode.state, batch.query_x[0, place, None])
    near = nearest_support(episode.state, compared_support, query, NEIGHBOURS)
    support = _support_rows(index)
    prototypes = near.prototype_distances
    return Answer(
        episode=episode.number,
        query=_example(index, own, int(index.query_index.flatten()[place])),
        predicted_id=int(index.class_id[0, predicted]),
        predicted_rotation=int(index.rotation[0, predicted]),
        probability=float(episode.probabilities[place, predicted]),
        right=predicted == own,
        nearest=tuple(
            NearExample(example=_example(index, *support[position]), distance=distance)
            for position, distance in zip(near.nearest[0].tolist(), near.distances[0].tolist(), strict=True)
        ),
        to_own=None if prototypes is None else float(prototypes[0, own]),
        to_predicted=None if prototypes is None else float(prototypes[0, predicted]),
    )


def _support_rows(index: EpisodeIndex) -> list[tuple[int, int]]:
    """Return the column and the row of each support example of one episode, in the order in which they are given."""
    shot = index.support_index.shape[-1]
    order = index.support_order[0]
    rows = index.support_index.flatten()[order].tolist()
    return list(zip((order // shot).tolist(), rows, strict=True))


def _example(index: EpisodeIndex, column: int, row: int) -> Example:
    return Example(class_id=int(index.class_id[0, column]), rotation=int(index.rotation[0, column]), row=row)
