"""A map of classes: the means of their features, projected on the two directions in which they differ most."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Record, Split
from metalearn_core.data.sampler import class_table, gather_examples
from metalearn_core.learners.contract import STATISTICS, Learner, State

EXAMPLES_A_CLASS = 5
MOST_CLASSES = 200
EXAMPLES_FOR_STATISTICS = 256
EMBEDDED_AT_ONCE = 64


class ClassPoint(Record):
    """A class on the map; `rotation` counts quarter turns."""

    class_id: int
    rotation: int
    x: float
    y: float


class EmbeddingMap(Record):
    """Where classes lie in the learner's feature space, seen from the side that shows most.

    Attributes:
        points: of the classes, in the order of the manifest.
        explained: the shares of the variance between class means that the two directions carry.
        space: whose features these are, in words.
        left_out: classes beyond the 200 that are shown.
    """

    points: tuple[ClassPoint, ...]
    explained: tuple[float, float]
    space: str
    left_out: int = 0


@torch.no_grad()
def embedding_map(learner: Learner, dataset: EpisodeDataset, split: Split, *, adapted: State) -> EmbeddingMap | None:
    """Return the map of a split's classes; None where there are fewer than three, which any map shows alike.

    A learner whose weights change with each support set has one space an episode: the map shows the one that all of
    them start from.

    Args:
        learner: in evaluation mode, inductive.
        dataset: of the examples; the first five of each class are embedded, and their mean is the class's place.
        split: whose classes, evenly chosen where they are more than 200.
        adapted: the state of any episode: it tells which batch-norm statistics the learner works with.
    """
    from sklearn.decomposition import PCA

    class_id, rotation = class_table(dataset, split)
    chosen = torch.from_numpy(np.unique(np.linspace(0, len(class_id) - 1, MOST_CLASSES).astype(int)))
    if len(chosen) < 3:
        return None
    classes, turns = class_id[chosen], rotation[chosen]
    counts = dataset.class_count[classes].clamp_max(EXAMPLES_A_CLASS)
    owner = torch.arange(len(classes)).repeat_interleave(counts)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    rows = dataset.class_offset[classes][owner] + place
    state, space = _shared_space(learner, dataset, rows, turns[owner], adapted)
    features = torch.cat(
        [learner.compared_features(state, x.unsqueeze(0))[0] for x in _parts(learner, dataset, rows, turns[owner])]
    )
    sums = features.new_zeros(len(classes), features.shape[-1], dtype=torch.float64)
    means = sums.index_add_(0, owner.to(features.device), features.double()).cpu() / counts.unsqueeze(1)
    projection = PCA(n_components=2, svd_solver="full")
    places = projection.fit_transform(F.pad(means, (0, max(0, 2 - means.shape[1]))).numpy())  # a line is a plane's axis
    first, second = np.nan_to_num(projection.explained_variance_ratio_).tolist()
    return EmbeddingMap(
        points=tuple(
            ClassPoint(class_id=number, rotation=turn, x=x, y=y)
            for number, turn, (x, y) in zip(classes.tolist(), turns.tolist(), places.tolist(), strict=True)
        ),
        explained=(first, second),
        space=space,
        left_out=len(class_id) - len(classes),
    )


def _shared_space(
    learner: Learner, dataset: EpisodeDataset, rows: Tensor, turns: Tensor, adapted: State
) -> tuple[State, str]:
    """Return a state under which all examples are embedded alike, and what it is.

    A learner that takes batch-norm statistics from each support set has none of its own: then those of a sample of the
    examples stand for them.
    """
    if not any(name.startswith(STATISTICS) for name in adapted):
        moved = any(name.startswith("backbone.") for name in adapted)
        return {}, "the weights before adapting" if moved else "the learner's features"
    sample = torch.from_numpy(np.unique(np.linspace(0, len(rows) - 1, EXAMPLES_FOR_STATISTICS).astype(int)))
    x = torch.cat(list(_parts(learner, dataset, rows[sample], turns[sample])))
    weights = dict(learner.backbone.named_parameters())
    _, statistics = learner.backbone.embed(weights, learner.standardise(x).unsqueeze(0))
    state = {STATISTICS + name: value for name, value in statistics.items()}
    return state, f"the weights before adapting, batch-normalised over {len(sample)} examples of these classes"


def _parts(learner: Learner, dataset: EpisodeDataset, rows: Tensor, turns: Tensor) -> Iterator[Tensor]:
    """Yield the examples at some rows, turned, a few at a time, on the learner's device."""
    turning = bool(turns.any())
    parts = zip(torch.split(rows, EMBEDDED_AT_ONCE), torch.split(turns, EMBEDDED_AT_ONCE), strict=True)
    for own_rows, own_turns in parts:
        yield gather_examples(dataset.examples, own_rows, own_turns if turning else None).to(learner.mean.device)
