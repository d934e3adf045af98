"""Which support examples a query lies nearest to, and how far it is from each class's prototype."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn_core.learners.contract import Learner, State

EXAMPLES_AT_ONCE = 256
PROTOTYPES = "prototypes"


@dataclass(frozen=True)
class Neighbours:
    """Euclidean distances of q queries, in the space of `Learner.compared_features`.

    Attributes:
        nearest: (q, k) int64, positions in the support set, the nearest first; of equals the first in the support set.
        distances: (q, k) float64, to those.
        prototype_distances: (q, way) float64, to each class's prototype; None where the learner keeps none.
    """

    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]
    prototype_distances: NDArray[np.float64] | None


@torch.no_grad()
def compared(learner: Learner, state: State, x: Tensor) -> Tensor:
    """Return where a learner compares examples x (n, *x), as (n, d) in fp64, given the state of one episode (b = 1)."""
    parts = [learner.compared_features(state, part.unsqueeze(0))[0] for part in torch.split(x, EXAMPLES_AT_ONCE)]
    return torch.cat(parts).double()


@torch.no_grad()
def nearest_support(state: State, support: Tensor, query: Tensor, count: int) -> Neighbours:
    """Return the nearest support examples of each query.

    Args:
        state: of one episode (b = 1).
        support: (s, d), the support set that led to the state, as `compared` returns it.
        query: (q, d), likewise.
        count: k, how many to return; at most s are.
    """
    distances = _distances(query, support)
    nearest = distances.argsort(dim=1, stable=True)[:, :count]
    prototypes = state.get(PROTOTYPES)
    comparable = prototypes is not None and prototypes.dim() == 3 and prototypes.shape[-1] == query.shape[-1]
    return Neighbours(
        nearest=nearest.cpu().numpy(),
        distances=distances.gather(1, nearest).cpu().numpy(),
        prototype_distances=_distances(query, prototypes[0].double()).cpu().numpy()
        if prototypes is not None and comparable
        else None,
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (m, n) of a (m, d) and b (n, d) from their differences, not from their products."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
