"""Outer losses of adapted episodes, one after the other: only one episode's query activations are there at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn_core.learners.contract import Outcome, State

OutcomeOf = Callable[[State, int], Outcome]


def episode_by_episode(outcome_of: OutcomeOf, state: State) -> Outcome:
    """Return the outcome (b,) of b adapted episodes, differentiable once with respect to `state`.

    Each loss depends on its own part of the state alone. Its gradient is found with it, and its activations are let go,
    so that the memory is that of one episode, whatever b.

    Args:
        outcome_of: gives the outcome of the episode of a number, from its part of the state (1, …).
        state: tensors (b, …), as `Learner.adapt` returns them.
    """
    names, values = tuple(state), tuple(state.values())
    losses, accuracies = _EpisodeByEpisode.apply(outcome_of, names, *values)  # type: ignore[no-untyped-call]
    return Outcome(losses, accuracies)


class _EpisodeByEpisode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outcome_of: OutcomeOf, names: tuple[str, ...], *values: Tensor) -> tuple[Tensor, Tensor]:
        outcomes, rows = [], []
        for number in range(len(values[0])):
            own = [value[number, None].detach() for value in values]
            leaves = [value.requires_grad_() for value in own if value.is_floating_point()]
            with torch.enable_grad():
                outcome = outcome_of(dict(zip(names, own, strict=True)), number)
                found = torch.autograd.grad(outcome.losses.sum(), leaves, allow_unused=True, materialize_grads=True)
            outcomes.append((outcome.losses.detach(), outcome.accuracies.detach()))
            rows.append(found)
        ctx.floating = [value.is_floating_point() for value in values]
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
        losses, accuracies = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
        ctx.mark_non_differentiable(accuracies)
        return losses, accuracies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weights: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = iter(ctx.saved_tensors)
        scaled: list[Tensor | None] = [None, None]
        for floating in ctx.floating:
            gradient = next(found) if floating else None
            scaled.append(None if gradient is None else gradient * weights.view(-1, *[1] * (gradient.dim() - 1)))
        return tuple(scaled)
