"""Conv4's gradient, and the derivative of that gradient along a direction, by hand: what MAML's inner steps need.

Differentiating a gradient in reverse mode runs grouped convolutions with large kernels, which are slow. The derivative
along a direction, R{·} (Pearlmutter 1994, "Fast exact multiplication by the Hessian"), needs ordinary convolutions
alone; and since the Hessian H is symmetric, Hv is what reverse mode would give.

For each block, with h its input and N the number of values of a channel:

    z = W ∗ h    x̂ = (z − μ) r,  r = (σ² + ε)^−½    u = γ x̂ + β    next h = relu(u) or relu(max-pool(u))
    e = ∂u − (Σ∂u + x̂ Σ∂u x̂) / N    ∂z = γ r e      (∂ is the gradient of the loss with respect to what follows)
    R{x̂} = r (R{z} − mean R{z} − x̂ mean(x̂ R{z}))    R{r} = −r² mean(x̂ R{z})
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.functional import EPSILON, fold_groups

_EACH_CHANNEL = (0, 2, 3)


@dataclass
class _Block:
    """What one block has computed; x̂ is `normal` and r is `inverse`, (1, o, 1, 1)."""

    weight: Tensor
    scale: Tensor
    hidden: Tensor
    normal: Tensor
    inverse: Tensor
    indices: Tensor | None
    out: Tensor
    count: int
    gradient: Tensor | None = None  # ∂u
    direction: Tensor | None = None  # e
    tangent: Tensor | None = None  # R{h}
    normal_tangent: Tensor | None = None  # R{x̂}
    inverse_tangent: Tensor | None = None  # R{r}
    scale_tangent: Tensor | None = None  # R{γ}


class Conv4Tape:
    """One group of examples through conv4, remembered. The methods are called in their order, each once, without grad.

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
        hidden = fold_groups(x.unsqueeze(0))
        for number in range(blocks):
            weight = weights[f"blocks.{number}.conv.weight"].contiguous(memory_format=torch.channels_last)
            scale, shift = (_channels(weights[f"blocks.{number}.norm.{name}"]) for name in ("weight", "bias"))
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
        gradients: dict[str, Tensor] = {}
        hidden_gradient = gradient.view_as(self._blocks[-1].out)
        for number, block in reversed(list(enumerate(self._blocks))):
            block.gradient = self._through_relu(block, hidden_gradient)
            shift_gradient = block.gradient.sum(_EACH_CHANNEL, keepdim=True)
            scale_gradient = (block.gradient * block.normal).sum(_EACH_CHANNEL, keepdim=True)
            mean = torch.addcmul(shift_gradient, block.normal, scale_gradient).div_(block.count)
            block.direction = block.gradient - mean
            z_gradient = block.direction * (block.scale * block.inverse)
            hidden_gradient, weight_gradient = self._convolve_back(z_gradient, block.hidden, block.weight, number > 0)
            gradients |= _named(number, weight_gradient, scale_gradient, shift_gradient)
        return gradients

    def forward_tangent(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return R{features} (n, d), the derivative of the features as the weights move along `direction`."""
        tangent: Tensor | None = None
        for number, block in enumerate(self._blocks):
            along = direction[f"blocks.{number}.conv.weight"].contiguous(memory_format=torch.channels_last)
            scale, shift = (_channels(direction[f"blocks.{number}.norm.{name}"]) for name in ("weight", "bias"))
            z = F.conv2d(block.hidden, along, stride=self._stride, padding=1)
            if tangent is not None:
                z += F.conv2d(tangent, block.weight, stride=self._stride, padding=1)
            block.tangent, block.scale_tangent = tangent, scale
            correlation = (z * block.normal).mean(_EACH_CHANNEL, keepdim=True)
            block.inverse_tangent = -block.inverse.square() * correlation
            z -= torch.addcmul(z.mean(_EACH_CHANNEL, keepdim=True), block.normal, correlation)
            block.normal_tangent = z * block.inverse
            u = torch.addcmul(shift, block.normal, scale).addcmul_(block.normal_tangent, block.scale)
            if block.indices is not None:
                u = u.flatten(2).gather(2, block.indices.flatten(2)).view_as(block.out)
            tangent = torch.where(block.out > 0, u, 0.0)
        assert tangent is not None
        return tangent.flatten(1)

    def backward_tangent(self, gradient_tangent: Tensor, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return R{gradient of every weight} along `direction`, from R{gradient of the features} (n, d)."""
        tangents: dict[str, Tensor] = {}
        hidden_tangent = gradient_tangent.view_as(self._blocks[-1].out)
        for number, block in reversed(list(enumerate(self._blocks))):
            assert block.gradient is not None
            assert block.direction is not None
            assert block.normal_tangent is not None
            assert block.inverse_tangent is not None
            assert block.scale_tangent is not None
            u = self._through_relu(block, hidden_tangent)
            shift_tangent = u.sum(_EACH_CHANNEL, keepdim=True)
            scale_gradient = (block.gradient * block.normal).sum(_EACH_CHANNEL, keepdim=True)
            products = (u * block.normal).addcmul_(block.gradient, block.normal_tangent)
            scale_tangent = products.sum(_EACH_CHANNEL, keepdim=True)
            mean = torch.addcmul(shift_tangent, block.normal, scale_tangent)
            mean = mean.addcmul_(block.normal_tangent, scale_gradient).div_(block.count)
            factor_tangent = block.scale_tangent * block.inverse + block.scale * block.inverse_tangent
            factor = block.scale * block.inverse
            z_tangent = ((u - mean) * factor).addcmul_(block.direction, factor_tangent)
            hidden_tangent, weight_tangent = self._convolve_back(z_tangent, block.hidden, block.weight, number > 0)
            if block.tangent is not None:
                along = direction[f"blocks.{number}.conv.weight"].contiguous(memory_format=torch.channels_last)
                more, weight_more = self._convolve_back(block.direction * factor, block.tangent, along, True)
                hidden_tangent, weight_tangent = hidden_tangent + more, weight_tangent + weight_more
            tangents |= _named(number, weight_tangent, scale_tangent, shift_tangent)
        return tangents

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


def _channels(value: Tensor) -> Tensor:
    return value.view(1, -1, 1, 1)


def _named(number: int, weight: Tensor, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    name = f"blocks.{number}"
    return {
        f"{name}.conv.weight": weight,
        f"{name}.norm.weight": scale.flatten(),
        f"{name}.norm.bias": shift.flatten(),
    }
