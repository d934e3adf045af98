"""The gradient of an inner step by a backbone's tape: of the mean loss on a support set, differentiable once more."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn_core.backbones.contract import Tape, TapeOf
from metalearn_core.backbones.functional import linear
from metalearn_core.learners.contract import BACKBONE, HEAD
from metalearn_core.learners.optimization.support_loss import SupportLoss

HEAD_WEIGHT, HEAD_BIAS = f"{HEAD}weight", f"{HEAD}bias"


def taped_gradient(
    tape_of: TapeOf, loss: SupportLoss, weights: Mapping[str, Tensor], second_order: bool
) -> dict[str, Tensor]:
    """Return the gradient of the loss of each of b support sets with respect to its weights, by the backbone's tape.

    Args:
        tape_of: gives the backbone's forward pass of the support sets.
        loss: of the support sets.
        weights: those of the backbone (below `backbone.`) and of the linear head, each with a leading dimension b.
        second_order: the gradient can be differentiated with respect to `weights`; under autocast, that derivative has
            its precision, while the gradient itself is always in full.
    """
    names, values = tuple(weights), list(weights.values())
    if second_order:
        gradients = _TapedGradient.apply(tape_of, names, loss, *values)  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad(), torch.autocast(values[0].device.type, enabled=False):
            gradients = _TapedLoss(tape_of(_below(weights), values[0].dtype), names, loss, values).gradients()
    return dict(zip(names, gradients, strict=True))


class _TapedLoss:
    """The loss of the outputs f Aᵀ + a, f the features of a tape, A and a the head."""

    def __init__(self, tape: Tape, names: tuple[str, ...], loss: SupportLoss, values: Sequence[Tensor]) -> None:
        own = dict(zip(names, values, strict=True))
        self._names, self._tape, self._loss = names, tape, loss
        self._head = own[HEAD_WEIGHT]
        self._outputs = linear(tape.features, self._head, own[HEAD_BIAS])
        self._slope = loss.gradient(self._outputs)

    def gradients(self) -> tuple[Tensor, ...]:
        """Return the gradient, in the order of the names."""
        found = self._tape.backward(self._slope @ self._head)
        return self._ordered(found, self._slope.mT @ self._tape.features, self._slope.sum(dim=1))

    def along(self, directions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the derivative of the gradient along directions (b, …): Hessian times vector."""
        own = dict(zip(self._names, directions, strict=True))
        below = _below(own)
        features = self._tape.forward_tangent(below)
        outputs = linear(features, self._head, own[HEAD_BIAS]) + self._tape.features @ own[HEAD_WEIGHT].mT
        slope = self._loss.tangent(self._outputs, outputs)
        found = self._tape.backward_tangent(slope @ self._head + self._slope @ own[HEAD_WEIGHT], below)
        weight = slope.mT @ self._tape.features + self._slope.mT @ features
        return self._ordered(found, weight, slope.sum(dim=1))

    def _ordered(self, backbone: Mapping[str, Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        values = {f"{BACKBONE}{name}": value for name, value in backbone.items()}
        values |= {HEAD_WEIGHT: weight, HEAD_BIAS: bias}
        return tuple(values[name] for name in self._names)


class _TapedGradient(torch.autograd.Function):
    """The gradient as a function of the weights; its derivative is the Hessian, which is symmetric."""

    @staticmethod
    def forward(
        ctx: Any, tape_of: TapeOf, names: tuple[str, ...], loss: SupportLoss, *values: Tensor
    ) -> tuple[Tensor, ...]:
        kind = values[0].device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values[0].dtype
        with torch.autocast(kind, enabled=False):
            tape = tape_of(_below(dict(zip(names, values, strict=True))), precision)
            ctx.loss = _TapedLoss(tape, names, loss, values)
            return ctx.loss.gradients()  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(directions[0].device.type, enabled=False):
            return (None, None, None, *ctx.loss.along(directions))


def _below(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
