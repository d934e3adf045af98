"""What adapting to a support set moved: the weights, layer by layer, and the loss on the support set, step by step."""

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import Record
from metalearn_core.learners.contract import Learner, State, query_outcome

SHOWN_STEPS = 10


class LayerChange(Record):
    """How far adapting moved the weights θ of one layer (a convolution, a batch norm, the head) to θ′.

    Attributes:
        layer: its name in the network.
        change: ‖θ′ − θ‖, the mean over episodes.
        norm: ‖θ‖.
    """

    layer: str
    change: float
    norm: float

    @property
    def relative(self) -> float | None:
        """‖θ′ − θ‖ / ‖θ‖; None where θ is zero, as a head that starts there."""
        return self.change / self.norm if self.norm else None


class StepLoss(Record):
    """The mean loss on the support set after so many inner steps."""

    steps: int
    loss: float


class Adaptation(Record):
    """What adapting does, the mean over episodes.

    Attributes:
        layers: in the order of the network; none where a learner adapts without changing weights.
        support_losses: from no inner step to all; none where a learner takes none.
    """

    layers: tuple[LayerChange, ...] = ()
    support_losses: tuple[StepLoss, ...] = ()


def explain_adaptation(learner: Learner, state: State, support_x: Tensor, support_y: Tensor, *, way: int) -> Adaptation:
    """Return what adapting to the support sets of b episodes moved.

    Args:
        learner: in evaluation mode.
        state: that `learner.adapt` made of them.
        support_x, support_y: (b, s, *x) and (b, s), as `adapt` takes them.
        way: classes an episode.
    """
    return Adaptation(
        layers=layer_changes(learner, state), support_losses=support_losses(learner, support_x, support_y, way=way)
    )


@torch.no_grad()
def layer_changes(learner: Learner, state: State) -> tuple[LayerChange, ...]:
    """Return how far the fast weights in a state are from the parameters whose names they have."""
    changes: dict[str, list[Tensor]] = defaultdict(list)
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in learner.named_parameters():
        if name in state and state[name].shape[1:] == parameter.shape:
            layer = name.rpartition(".")[0] or name
            shared = parameter.double()
            changes[layer].append((state[name].double() - shared).flatten(1).square().sum(dim=1))
            norms[layer].append(shared.square().sum())
    return tuple(
        LayerChange(
            layer=layer,
            change=float(torch.stack(squares).sum(dim=0).sqrt().mean()),
            norm=float(torch.stack(norms[layer]).sum().sqrt()),
        )
        for layer, squares in changes.items()
    )


@torch.no_grad()
def support_losses(learner: Learner, support_x: Tensor, support_y: Tensor, *, way: int) -> tuple[StepLoss, ...]:
    """Return the loss on the support sets after inner steps 0, 1, … of a learner that has the option `eval_steps`.

    Each figure is that of adapting anew with so many steps; of many steps at most ten numbers are tried.
    """
    total = getattr(learner.config, "eval_steps", None)
    if total is None:
        return ()
    episodes = EpisodeBatch(way, support_x, support_y, support_x, support_y)
    losses = []
    for steps in (0, *np.unique(np.geomspace(1, total, SHOWN_STEPS).round().astype(int)).tolist()):
        shorter = copy.copy(learner)  # shares weights; only its options are its own, so nobody else sees them change
        shorter.config = learner.config.model_copy(update={"eval_steps": steps})
        losses.append(StepLoss(steps=steps, loss=float(query_outcome(shorter(episodes), episodes).losses.mean())))
    return tuple(losses)
