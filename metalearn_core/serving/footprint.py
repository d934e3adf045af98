"""What adapting to a support set takes of memory, told before it is done."""

from functools import lru_cache

import torch
from torch import Tensor

from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import Learner
from metalearn_core.learners.embedding import EmbeddingLearner
from metalearn_core.model import Model

MOST_BYTES = 4 * 2**30
"""Of one support set: above it a request is refused, whatever memory the machine has."""
# What lives beside it: patches, gradients, what is being computed; and of a graph what is alive in one pass. Measured.
_OF_A_TAPE, _OF_A_GRAPH, _OF_A_PASS = 6.0, 2.5, 1.0


def check_support(model: Model, examples: int, place: str) -> None:
    """Refuse a support set whose adaptation takes more than `MOST_BYTES`.

    Raises:
        UsageError: it has too many examples for this model.
    """
    each = bytes_an_example(model.learner)
    if examples * each > MOST_BYTES:
        raise UsageError(
            f"{place}support: got {examples} examples, each of which takes about {each / 2**20:,.0f} MB as "
            f"{model.description.learner} adapts: send at most {int(MOST_BYTES / each)}"
        )


@lru_cache(maxsize=8)
def bytes_an_example(learner: Learner) -> float:
    """Return about how much memory adapting takes for each support example; 0 where it does not grow with them.

    A learner that embeds examples does so a few at a time; others take all in one pass. Gradient steps hold what the
    backbone remembers of them.
    """
    if isinstance(learner, EmbeddingLearner):
        return 0.0
    backbone = learner.backbone
    size = learner.mean.element_size()
    if backbone.taped and learner.moves_backbone:
        return _OF_A_TAPE * size * backbone.remembered
    remembered: dict[int, int] = {}

    def remember(value: Tensor) -> Tensor:
        remembered[value.data_ptr()] = value.untyped_storage().nbytes()
        return value

    few, many = (torch.zeros(1, count, *learner.spec.example_shape, device=learner.mean.device) for count in (2, 4))
    totals = []
    for x in (few, many):
        remembered.clear()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(remember, lambda value: value):
            features, _ = backbone.embed(dict(backbone.named_parameters()), x.to(learner.mean.dtype), None)
        totals.append(sum(remembered.values()))
        del features
    return (_OF_A_GRAPH if learner.moves_backbone else _OF_A_PASS) * (totals[1] - totals[0]) / 2
