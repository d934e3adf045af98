"""A training run's weights, optimiser and best weights as one flat mapping of tensors, and back; and to others."""

import json
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from metalearn_core.learners.contract import Learner
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.optimiser import Optimiser
from metalearn_core.training.world import World


def pack(learner: Learner, optimiser: Optimiser, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor that a run needs to go on, in the processor's memory."""
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for slot, values in optimiser.slots.items():
        named = zip(learner.named_parameters(), values, strict=True)
        tensors |= {f"optimiser.{name}.{slot}": value for (name, _), value in named}
    tensors["optimiser.steps"] = torch.tensor(optimiser.steps)
    return {name: value.cpu() for name, value in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], learner: Learner, optimiser: Optimiser) -> dict[str, Tensor]:
    """Put back what `pack` took from a run like this one, and return its best weights."""
    learner.load_state_dict(_below(tensors, "learner."))
    for slot, values in optimiser.slots.items():
        for (name, _), value in zip(learner.named_parameters(), values, strict=True):
            value.copy_(tensors[f"optimiser.{name}.{slot}"])
    optimiser.steps = int(tensors["optimiser.steps"])
    return _below(tensors, "best.")


def told_checkpoint(
    world: World, found: tuple[Progress, dict[str, Tensor]] | None
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Return the checkpoint that the first process has found, or None where it has found none.

    It alone looks: what machines see of a bucket, and have of it, may differ for a while.

    Args:
        world: the processes, each of which calls this.
        found: in the first process, what it has found.
    """
    if world.size == 1:
        return found
    progress, tensors = b"", b""
    if found:
        progress, tensors = json.dumps(found[0].model_dump(mode="json")).encode(), safetensors.torch.save(found[1])
    progress, tensors = world.tell(progress), world.tell(tensors)
    return (Progress.model_validate(json.loads(progress)), safetensors.torch.load(tensors)) if progress else None


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
