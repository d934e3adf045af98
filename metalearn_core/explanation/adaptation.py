"""What adapting to a support set moved: the weights, layer by layer, and the loss on the support set, step by step."""

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

    θ is what the learner starts from in an episode: for most the shared weights, for a head that is made of the support
    set what is made.

    Attributes:
        layer: its name in the network.
        change: ‖θ′ − θ‖, the mean over episodes.
        norm: ‖θ‖, the mean over episodes.
        relative: ‖θ′ − θ‖ / ‖θ‖, the mean over episodes; None where θ is zero in any, as a head that starts there.
    """

    layer: str
    change: float
    norm: float
    relative: float | None


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


@torch.no_grad()
def explain_adaptation(
    learner: Learner,
    state: State,
    support_x: Tensor,
    support_y: Tensor,
    *,
    way: int,
    support_mask: Tensor | None = None,
) -> Adaptation:
    """Return what adapting to the support sets of b episodes moved.

    Args:
        learner: in evaluation mode.
        state: that `learner.adapt` made of them.
        support_x, support_y: (b, s, *x) and (b, s), as `adapt` takes them.
        way: classes per episode.
        support_mask: (b, s) bool, False where padded.
    """
    start = learner.unmoved(support_x, support_y, way=way, support_mask=support_mask)
    return Adaptation(
        layers=layer_changes(start, state),
        support_losses=support_losses(learner, support_x, support_y, way=way, support_mask=support_mask),
    )


@torch.no_grad()
def layer_changes(start: State, state: State) -> tuple[LayerChange, ...]:
    """Return how far the fast weights in a state are from where they start, as `Learner.unmoved` returns it."""
    changes: dict[str, list[Tensor]] = defaultdict(list)
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, value in start.items():
        if name in state and state[name].shape[1:] == value.shape[1:]:
            layer, unmoved = name.rpartition(".")[0] or name, value.double()
            changes[layer].append((state[name].double() - unmoved).flatten(1).square().sum(dim=1))
            norms[layer].append(unmoved.flatten(1).square().sum(dim=1))
    return tuple(_layer_change(layer, _norm(squares), _norm(norms[layer])) for layer, squares in changes.items())


def _norm(squares: list[Tensor]) -> Tensor:
    """Return the norm in each episode whose parts have these squares, each (b,) or (1,)."""
    return torch.stack(squares).sum(dim=0).sqrt()


def _layer_change(layer: str, change: Tensor, norm: Tensor) -> LayerChange:
    """Return the means over episodes of ‖θ′ − θ‖ (b,), ‖θ‖ (b,) or (1,), and of their ratio."""
    relative = float((change / norm).mean()) if norm.all() else None
    return LayerChange(layer=layer, change=float(change.mean()), norm=float(norm.mean()), relative=relative)


@torch.no_grad()
def support_losses(
    learner: Learner, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
) -> tuple[StepLoss, ...]:
    """Return the loss on the support sets after inner steps 0, 1, … of a learner that has the option `eval_steps`.

    Each figure is that of adapting anew with so many steps; of many steps at most ten numbers are tried. Empty where
    the learner takes none.
    """
    total = getattr(learner.config, "eval_steps", None)
    if not total:
        return ()
    episodes = EpisodeBatch(way, support_x, support_y, support_x, support_y, support_mask, support_mask)
    losses = []
    for steps in (0, *np.unique(np.geomspace(1, total, SHOWN_STEPS).round().astype(int)).tolist()):
        logits = learner.with_eval_steps(steps)(episodes)
        losses.append(StepLoss(steps=steps, loss=float(query_outcome(logits, episodes).losses.mean())))
    return tuple(losses)
