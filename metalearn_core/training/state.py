"""A training run's weights, optimiser and best weights as one flat mapping of tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn_core.learners.contract import Learner

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def pack(learner: Learner, optimiser: torch.optim.AdamW, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor that a run needs to go on, in the processor's memory."""
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for name, parameter in learner.named_parameters():
        state = optimiser.state.get(parameter, {})
        tensors |= {f"optimiser.{name}.{moment}": state[moment] for moment in MOMENTS if state}
    return {name: value.cpu() for name, value in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], learner: Learner, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """Put back what `pack` took from a run like this one, and return its best weights."""
    learner.load_state_dict(_below(tensors, "learner."))
    for name, parameter in learner.named_parameters():
        state = _below(tensors, f"optimiser.{name}.")
        if state:
            moments = {name: state[name].to(parameter.device) for name in MOMENTS if name != "step"}
            optimiser.state[parameter] = {**moments, "step": state["step"]}
    return _below(tensors, "best.")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
