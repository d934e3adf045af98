"""How many classes and examples an episode has where way and shot vary: the rules of Meta-Dataset, in integers.

Triantafillou et al. 2020, "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", section 3.2.
Class c has n_c examples, and an episode N of the classes. In their words, with their numbers for the ranges 5-50 of
ways and 1-100 of shots, and 10 queries:

    N ~ U[5, 50], capped by the classes there are
    q = min(10, min_c ⌊n_c / 2⌋)                              queries per class
    |S| = min(500, Σ_c ⌈β min(100, n_c − q)⌉), β ~ U(0, 1]    examples in the support set, at most
    R_c ∝ n_c exp(α_c), α_c ~ U[log ½, log 2)                  how the classes share in them
    k_c = min(⌊R_c (|S| − N)⌋ + 1, n_c − q)                   shots of a class

Ours differ where the range of shots ends: no class has more than 100 shots, which theirs may where one class has most
of the examples. A least shot above 1 takes the place of the ones, and leaves n_c − q no smaller.
"""

from functools import cache

import torch
from torch import Tensor

from metalearn_core.data.counter import below
from metalearn_core.data.shape import LARGEST_SUPPORT, EpisodeShape

_SHARES = 2**16
_STEPS = 2**12


def draw_ways(word: Tensor, shape: EpisodeShape, classes: Tensor) -> Tensor:
    """Return the ways of b episodes, uniform from the range, capped by the classes there are.

    Args:
        word: (b,) random words.
        shape: of the episodes.
        classes: (b,) that each is drawn from, no fewer than the least way.
    """
    least = shape.least_way
    return least + below(word, classes.clamp(max=shape.way) - least + 1)


def draw_counts(size_word: Tensor, share_word: Tensor, examples: Tensor, shape: EpisodeShape) -> tuple[Tensor, Tensor]:
    """Return the shots k_c (b, way) of each class and the queries per class q (b,); 0 where no class is.

    Args:
        size_word: (b,) random words, for β.
        share_word: (b, way) random words, for the α_c.
        examples: n_c (b, way); 0 where there is no class.
        shape: of the episodes, with a least shot.
    """
    assert shape.min_shot is not None
    present = examples > 0
    way, least = present.sum(dim=1), shape.min_shot
    smallest = examples.masked_fill(~present, torch.iinfo(torch.int64).max).amin(dim=1)
    query = torch.minimum(smallest // 2, smallest - least).clamp(max=shape.query)
    most = torch.where(present, (examples - query.unsqueeze(1)).clamp(max=shape.shot), 0)
    numerator = below(size_word, _SHARES).unsqueeze(1) + 1
    wanted = torch.where(present, ((numerator * most + _SHARES - 1) // _SHARES).clamp(min=least), 0).sum(dim=1)
    size = torch.maximum(wanted.clamp(max=LARGEST_SUPPORT), least * way)
    weight = _exponentials().to(examples.device)[below(share_word, _STEPS)] * examples
    share = weight * (size - least * way).unsqueeze(1) // weight.sum(dim=1, keepdim=True)
    return torch.where(present, torch.minimum(share + least, most), 0), query


@cache
def _exponentials() -> Tensor:
    """Return exp(α) for _STEPS values of α, evenly spaced in [log ½, log 2), as multiples of 1/_SHARES."""
    return torch.tensor([round(_SHARES * 2 ** ((2 * step + 1) / _STEPS - 1)) for step in range(_STEPS)])
