"""The gradient of an inner step: of the mean cross-entropy on a support set, differentiable once more."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Tape
from metalearn_core.backbones.functional import linear

BACKBONE = "backbone."
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"


def taped_gradient(
    backbone: Backbone, x: Tensor, y: Tensor, present: Tensor, weights: Mapping[str, Tensor], second_order: bool
) -> dict[str, Tensor]:
    """Return ∇ of the mean cross-entropy of each of b support sets with respect to its weights, by the backbone's tape.

    Args:
        backbone: that is `taped`.
        x: (b, s, *x) standardised examples.
        y: (b, s) labels.
        present: (b, way) which classes have support; the others take no part.
        weights: those of the backbone (below `backbone.`) and of the linear head, each with a leading dimension b.
        second_order: the gradient can be differentiated with respect to `weights`; under autocast, that derivative has
            its precision, while the gradient itself is always in full.
    """
    names, values = tuple(weights), list(weights.values())
    if second_order:
        gradients = _TapedGradient.apply(backbone, names, x, y, present, *values)  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            gradients = _SupportLoss(backbone.tape(_below(weights), x, x.dtype), names, y, present, values).gradients()
    return dict(zip(names, gradients, strict=True))


class _SupportLoss:
    """Cross-entropy of each support set: L = mean −log softmax(f Aᵀ + a)_y, f the features, A and a the head."""

    def __init__(
        self, tape: Tape, names: tuple[str, ...], y: Tensor, present: Tensor, values: Sequence[Tensor]
    ) -> None:
        own = dict(zip(names, values, strict=True))
        self._names, self._tape = names, tape
        self._head = own[HEAD_WEIGHT]
        logits = linear(self._tape.features, self._head, own[HEAD_BIAS])
        self._share = torch.softmax(logits.masked_fill(~present.unsqueeze(1), -torch.inf), dim=-1)
        targets = F.one_hot(y, self._head.shape[1]).to(logits.dtype)
        self._logits_gradient = (self._share - targets) / logits.shape[1]

    def gradients(self) -> tuple[Tensor, ...]:
        """Return the gradient, in the order of the names."""
        found = self._tape.backward(self._logits_gradient @ self._head)
        weight, bias = self._logits_gradient.mT @ self._tape.features, self._logits_gradient.sum(dim=1)
        return self._ordered(found, weight, bias)

    def along(self, directions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the derivative of the gradient along directions (b, …): Hessian times vector."""
        own = dict(zip(self._names, directions, strict=True))
        below = _below(own)
        features = self._tape.forward_tangent(below)
        logits = linear(features, self._head, own[HEAD_BIAS]) + self._tape.features @ own[HEAD_WEIGHT].mT
        share = self._share * (logits - (self._share * logits).sum(dim=-1, keepdim=True))
        logits_tangent = share / logits.shape[1]
        features_tangent = logits_tangent @ self._head + self._logits_gradient @ own[HEAD_WEIGHT]
        found = self._tape.backward_tangent(features_tangent, below)
        weight = logits_tangent.mT @ self._tape.features + self._logits_gradient.mT @ features
        return self._ordered(found, weight, logits_tangent.sum(dim=1))

    def _ordered(self, backbone: Mapping[str, Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        values = {f"{BACKBONE}{name}": value for name, value in backbone.items()}
        values |= {HEAD_WEIGHT: weight, HEAD_BIAS: bias}
        return tuple(values[name] for name in self._names)


class _TapedGradient(torch.autograd.Function):
    """The gradient as a function of the weights; its derivative is the Hessian, which is symmetric."""

    @staticmethod
    def forward(
        ctx: Any, backbone: Backbone, names: tuple[str, ...], x: Tensor, y: Tensor, present: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            tape = backbone.tape(_below(dict(zip(names, values, strict=True))), x, precision)
            ctx.loss = _SupportLoss(tape, names, y, present, values)
            return ctx.loss.gradients()  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(directions[0].device.type, enabled=False):
            return (None, None, None, None, None, *ctx.loss.along(directions))


def _below(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
