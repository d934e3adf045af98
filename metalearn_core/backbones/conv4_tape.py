"""Conv4's gradient, and the derivative of that gradient along a direction, by hand: what MAML's inner steps need.

Differentiating a gradient in reverse mode runs grouped convolutions with large kernels, which are slow. The derivative
along a direction, R{·} (Pearlmutter 1994, "Fast exact multiplication by the Hessian"), needs ordinary convolutions
alone; and since the Hessian H is symmetric, Hv is what reverse mode would give.

For each block, with h its input and N the number of values of a channel:

    z = W ∗ h    x̂ = (z − μ) r,  r = (σ² + ε)^−½    u = γ x̂ + β    next h = relu(u) or relu(max-pool(u))
    e = ∂u − (Σ∂u + x̂ Σ∂u x̂) / N    ∂z = γ r e      (∂ is the gradient of the loss with respect to what follows)
    R{x̂} = r (R{z} − mean R{z} − x̂ mean(x̂ R{z}))    R{γ r} = R{γ} r − γ r² mean(x̂ R{z})
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.functional import EPSILON, fold_groups

_EACH_CHANNEL = (0, 2, 3)


@dataclass(frozen=True)
class _Block:
    """What a block has computed; a value a channel is (1, o, 1, 1)."""

    weight: Tensor  # W
    scale: Tensor  # γ
    hidden: Tensor  # h
    normal: Tensor  # x̂
    inverse: Tensor  # r
    indices: Tensor | None  # of the max-pool
    out: Tensor  # the next h
    count: int  # N


@dataclass(frozen=True)
class _Gradient:
    """What the backward pass has found for a block."""

    out: Tensor  # ∂u
    scale: Tensor  # Σ∂u x̂, γ's gradient
    direction: Tensor  # e


@dataclass(frozen=True)
class _Tangent:
    """R{·} of what a block has computed; the first block's input does not move."""

    hidden: Tensor | None  # R{h}
    normal: Tensor  # R{x̂}
    factor: Tensor  # R{γ r}


class Conv4Tape:
    """One group of examples through conv4, remembered. The methods are called in their order, without grad.

    Args:
        weights: by the names of `named_parameters()`, for one group.
        x: (n, c, h, w) standardised examples.
        blocks: how many.
        pooled: a block halves by max-pool, not by stride.

    Attributes:
        features: (n, d).
    """

    def __init__(self, weights: Mapping[str, Tensor], x: Tensor, blocks: int, pooled: bool) -> None:
        self._pooled, self._stride = pooled, 1 if pooled else 2
        self._blocks: list[_Block] = []
        self._gradients: list[_Gradient] = []
        self._tangents: list[_Tangent] = []
        hidden = fold_groups(x.unsqueeze(0))
        for number in range(blocks):
            weight, scale, shift = _of_block(weights, number)
            z = F.conv2d(hidden, weight, stride=self._stride, padding=1)
            variance, mean = torch.var_mean(z, _EACH_CHANNEL, correction=0, keepdim=True)
            inverse = torch.rsqrt(variance + EPSILON)
            normal = z.sub_(mean).mul_(inverse)
            out = torch.addcmul(shift, normal, scale)
            indices = None
            if pooled:
                out, indices = F.max_pool2d_with_indices(out, [2, 2])
            out = out.relu_()
            count = normal.numel() // normal.shape[1]
            self._blocks.append(_Block(weight, scale, hidden, normal, inverse, indices, out, count))
            hidden = out
        self.features = hidden.flatten(1)

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """Return the gradient with respect to every weight, from that with respect to the features (n, d)."""
        found: dict[str, Tensor] = {}
        hidden = gradient.view_as(self._blocks[-1].out)
        self._gradients = []
        for number, block in reversed(list(enumerate(self._blocks))):
            out = self._through_relu(block, hidden)
            shift = out.sum(_EACH_CHANNEL, keepdim=True)
            scale = (out * block.normal).sum(_EACH_CHANNEL, keepdim=True)
            direction = out - torch.addcmul(shift, block.normal, scale).div_(block.count)
            self._gradients.insert(0, _Gradient(out, scale, direction))
            z = direction * (block.scale * block.inverse)
            hidden, weight = self._convolve_back(z, block.hidden, block.weight, number > 0)
            found |= _named(number, weight, scale, shift)
        return found

    def forward_tangent(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return R{features} (n, d), the derivative of the features as the weights move along `direction`."""
        hidden: Tensor | None = None
        self._tangents = []
        for number, block in enumerate(self._blocks):
            weight, scale, shift = _of_block(direction, number)
            z = F.conv2d(block.hidden, weight, stride=self._stride, padding=1)
            if hidden is not None:
                z += F.conv2d(hidden, block.weight, stride=self._stride, padding=1)
            correlation = (z * block.normal).mean(_EACH_CHANNEL, keepdim=True)
            z -= torch.addcmul(z.mean(_EACH_CHANNEL, keepdim=True), block.normal, correlation)
            normal = z.mul_(block.inverse)
            factor = scale * block.inverse - block.scale * block.inverse.square() * correlation
            self._tangents.append(_Tangent(hidden, normal, factor))
            u = torch.addcmul(shift, block.normal, scale).addcmul_(normal, block.scale)
            if block.indices is not None:
                u = u.flatten(2).gather(2, block.indices.flatten(2)).view_as(block.out)
            hidden = torch.where(block.out > 0, u, 0.0)
        assert hidden is not None
        return hidden.flatten(1)

    def backward_tangent(self, gradient_tangent: Tensor, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return R{gradient of every weight} along `direction`, from R{gradient of the features} (n, d)."""
        found: dict[str, Tensor] = {}
        hidden = gradient_tangent.view_as(self._blocks[-1].out)
        passes = zip(self._blocks, self._gradients, self._tangents, strict=True)
        for number, (block, gradient, tangent) in reversed(list(enumerate(passes))):
            out = self._through_relu(block, hidden)
            shift = out.sum(_EACH_CHANNEL, keepdim=True)
            scale = (out * block.normal).addcmul_(gradient.out, tangent.normal).sum(_EACH_CHANNEL, keepdim=True)
            mean = torch.addcmul(shift, block.normal, scale).addcmul_(tangent.normal, gradient.scale)
            factor = block.scale * block.inverse
            z = ((out - mean.div_(block.count)) * factor).addcmul_(gradient.direction, tangent.factor)
            hidden, weight = self._convolve_back(z, block.hidden, block.weight, number > 0)
            if tangent.hidden is not None:
                along, _, _ = _of_block(direction, number)
                more = self._convolve_back(gradient.direction * factor, tangent.hidden, along, True)
                hidden, weight = hidden + more[0], weight + more[1]
            found |= _named(number, weight, scale, shift)
        return found

    def _through_relu(self, block: _Block, gradient: Tensor) -> Tensor:
        """Return the gradient before ReLU (and max-pool) from that after it."""
        gradient = torch.where(block.out > 0, gradient, 0.0)
        if block.indices is None:
            return gradient
        before = torch.zeros_like(block.normal)
        return before.flatten(2).scatter_add_(2, block.indices.flatten(2), gradient.flatten(2)).view_as(before)

    def _convolve_back(self, z: Tensor, hidden: Tensor, weight: Tensor, inner: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of a convolution's input (where it is an inner one) and weight."""
        stride = [self._stride, self._stride]
        wanted = [inner, True, False]
        found = torch.ops.aten.convolution_backward(
            z, hidden, weight, None, stride, [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        return found[0], found[1]


def _of_block(values: Mapping[str, Tensor], number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what belongs to a block's weight, scale and shift, as its operations take it."""
    name = f"blocks.{number}"
    weight = values[f"{name}.conv.weight"].contiguous(memory_format=torch.channels_last)
    return weight, values[f"{name}.norm.weight"].view(1, -1, 1, 1), values[f"{name}.norm.bias"].view(1, -1, 1, 1)


def _named(number: int, weight: Tensor, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    name = f"blocks.{number}"
    return {
        f"{name}.conv.weight": weight,
        f"{name}.norm.weight": scale.flatten(),
        f"{name}.norm.bias": shift.flatten(),
    }
