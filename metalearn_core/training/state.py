"""A training run's weights, optimiser and best weights as one flat mapping of tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn_core.learners.contract import Learner
from metalearn_core.training.optimiser import AdamW


def pack(learner: Learner, optimiser: AdamW, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor that a run needs to go on, in the processor's memory."""
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for (name, _), first, second in zip(learner.named_parameters(), optimiser.first, optimiser.second, strict=True):
        tensors |= {f"optimiser.{name}.first": first, f"optimiser.{name}.second": second}
    tensors["optimiser.steps"] = torch.tensor(optimiser.steps)
    return {name: value.cpu() for name, value in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], learner: Learner, optimiser: AdamW) -> dict[str, Tensor]:
    """Put back what `pack` took from a run like this one, and return its best weights."""
    learner.load_state_dict(_below(tensors, "learner."))
    for (name, _), first, second in zip(learner.named_parameters(), optimiser.first, optimiser.second, strict=True):
        first.copy_(tensors[f"optimiser.{name}.first"])
        second.copy_(tensors[f"optimiser.{name}.second"])
    optimiser.steps = int(tensors["optimiser.steps"])
    return _below(tensors, "best.")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
