"""Conv4's gradient, and the derivative of that gradient along a direction, by hand: what MAML's inner steps need.

Differentiating a gradient in reverse mode runs grouped convolutions with large kernels, which are slow. The derivative
along a direction, R{·} (Pearlmutter 1994, "Fast exact multiplication by the Hessian"), needs ordinary convolutions
alone; and since the Hessian H is symmetric, Hv is what reverse mode would give.

For each block, with U the 3×3 patches of its input h, and N the number of values of a channel:

    z = U Wᵀ    x̂ = (z − μ) r,  r = (σ² + ε)^−½    u = γ x̂ + β    next h = relu(u) or relu(max-pool(u))
    e = ∂u − (Σ∂u + x̂ Σ∂u x̂) / N    ∂z = γ r e    ∂W = ∂zᵀ U    ∂U = ∂z W
    R{x̂} = r (R{z} − mean R{z} − x̂ mean(x̂ R{z}))    R{γ r} = R{γ} r − γ r² mean(x̂ R{z})

where ∂ is the gradient of the loss with respect to what follows. The first block, whose U is fixed, needs none of that
(`examples_block`). A group is a support set, of so few examples that calling a kernel costs more than its arithmetic:
every operation is for all groups at once, each with its own weights.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.examples_block import BlockValues, ExamplePatches, ExamplesBlock, weight_gradient
from metalearn_core.backbones.functional import EPSILON

_TAPS = 3


@dataclass(frozen=True)
class _Halving:
    """How a block halves its map: by a max-pool after the convolution, or by the convolution's stride alone."""

    size: tuple[int, int]  # height and width of the block's input
    indices: Tensor | None  # of the max-pool


@dataclass(frozen=True)
class _Block:
    """What a block has computed: a row an output pixel, a column a channel; a value a channel is (g, 1, o).

    Neither its input nor its output is kept: the output follows from x̂ at the cost of one operation.
    """

    halving: _Halving
    weight: Tensor  # W, (g, o, 9·c)
    scale: Tensor  # γ
    shift: Tensor  # β
    normal: Tensor  # x̂, (g, n·h·w, o)
    inverse: Tensor  # r


@dataclass(frozen=True)
class _Gradient:
    """What the backward pass has found for a block."""

    out: Tensor  # ∂u
    shift: Tensor  # Σ∂u, β's gradient
    scale: Tensor  # Σ∂u x̂, γ's gradient


@dataclass(frozen=True)
class _Tangent:
    """R{·} of what a block has computed."""

    normal: Tensor  # R{x̂}
    factor: Tensor  # R{γ r}


class Conv4Examples:
    """Groups of examples as conv4 sees them, whatever its weights are.

    Args:
        x: (g, n, c, h, w) standardised examples.
        pooled: a block halves by max-pool, not by stride.

    Attributes:
        groups, count: g and n.
        pooled: see there.
        size: h and w.
        patches: of the first convolution.
    """

    def __init__(self, x: Tensor, pooled: bool) -> None:
        self.groups, self.count, self.pooled = x.shape[0], x.shape[1], pooled
        self.size = (x.shape[3], x.shape[4])
        rows = x.permute(0, 1, 3, 4, 2).reshape(self.groups, -1, x.shape[2])
        self.patches = ExamplePatches.of(_unfold(rows, self.size, self.stride))

    @property
    def stride(self) -> int:
        """Of the convolutions."""
        return 1 if self.pooled else 2


class Conv4Tape:
    """Groups of examples through conv4, remembered. The methods are called in their order, without grad.

    Args:
        weights: by the names of `named_parameters()`, each with a leading dimension g.
        examples: to pass through.
        blocks: how many.
        tangent_precision: of the tangents' matrix products after the first block; what they give is summed up in the
            type of the examples.

    Attributes:
        features: (g, n, d).
    """

    def __init__(
        self, weights: Mapping[str, Tensor], examples: Conv4Examples, blocks: int, tangent_precision: torch.dtype
    ) -> None:
        self._tangent_precision, self._dtype = tangent_precision, examples.patches.rows.dtype
        self._groups, self._count, self._stride = examples.groups, examples.count, examples.stride
        size, pooled = examples.size, examples.pooled
        self._first = ExamplesBlock(examples.patches, _of_block(weights, 0))
        self._first_halving, hidden = self._halve(self._first.forward(), size, pooled)
        self._first_out = hidden.relu_()
        self._blocks: list[_Block] = []
        # What convolutions see, U and R{U}, between two passes that both need it: it is larger than what it is made of.
        self._patches: list[Tensor] = []
        self._moving_patches: list[tuple[Tensor, Tensor]] = []
        self._gradients: list[_Gradient] = []
        self._tangents: list[_Tangent] = []
        for number in range(1, blocks):
            size, own = self._halved(size), _of_block(weights, number)
            patches = _unfold(hidden, size, self._stride)
            self._patches.append(patches)
            normal = patches @ own.weight.mT
            normal.sub_(normal.mean(1, keepdim=True))
            inverse = torch.rsqrt(normal.square().mean(1, keepdim=True) + EPSILON)
            normal.mul_(inverse)
            halving, hidden = self._halve(torch.addcmul(own.shift, normal, own.scale), size, pooled)
            self._blocks.append(_Block(halving, own.weight, own.scale, own.shift, normal, inverse))
            hidden = hidden.relu_()
        self.features = self._features(hidden)

    def backward(self, gradient: Tensor) -> dict[str, Tensor]:
        """Return the gradient with respect to every weight, from that with respect to the features (g, n, d)."""
        found: dict[str, Tensor] = {}
        hidden = self._from_features(gradient)
        self._gradients = []
        for number, block in reversed(list(enumerate(self._blocks, start=1))):
            out = self._before_pool(block.halving, _where_positive(self._activation(block), hidden))
            shift, scale = out.sum(1, keepdim=True), (out * block.normal).sum(1, keepdim=True)
            self._gradients.insert(0, _Gradient(out, shift, scale))
            z = _direction(block, self._gradients[0]).mul_(block.scale * block.inverse)
            found |= _named(number, BlockValues(weight_gradient(z, self._patches.pop()), scale, shift))
            hidden = self._fold(z @ block.weight, block.halving.size)
        hidden = self._before_pool(self._first_halving, _where_positive(self._first_out, hidden))
        return found | _named(0, self._first.backward(hidden))

    def forward_tangent(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return R{features} (g, n, d), the derivative of the features as the weights move along `direction`."""
        before = self._first_out
        hidden = self._pooled(self._first_halving, self._first.forward_tangent(_of_block(direction, 0)))
        hidden = _where_positive(before, hidden)
        self._tangents, self._moving_patches = [], []
        for number, block in enumerate(self._blocks, start=1):
            along = _of_block(direction, number)
            still, moving = (
                _unfold(self._rounded(rows), block.halving.size, self._stride) for rows in (before, hidden)
            )
            self._moving_patches.append((still, moving))
            normal = self._tangent_product(still, along.weight.mT)
            normal += self._tangent_product(moving, block.weight.mT)
            correlation = (normal * block.normal).mean(1, keepdim=True)
            normal.sub_(torch.addcmul(normal.mean(1, keepdim=True), block.normal, correlation)).mul_(block.inverse)
            factor = along.scale * block.inverse - block.scale * block.inverse.square() * correlation
            self._tangents.append(_Tangent(normal, factor))
            moved = torch.addcmul(along.shift, block.normal, along.scale).addcmul_(normal, block.scale)
            before = self._activation(block).relu_()
            hidden = _where_positive(before, self._pooled(block.halving, moved))
        return self._features(hidden)

    def backward_tangent(self, gradient_tangent: Tensor, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return R{gradient of every weight} along `direction`, from R{gradient of the features} (g, n, d)."""
        found: dict[str, Tensor] = {}
        hidden = self._from_features(gradient_tangent)
        passes = zip(self._blocks, self._gradients, self._tangents, strict=True)
        for number, (block, gradient, tangent) in reversed(list(enumerate(passes, start=1))):
            unmoved, moving = self._moving_patches.pop()
            out = self._before_pool(block.halving, _where_positive(self._activation(block), hidden))
            shift = out.sum(1, keepdim=True)
            scale = (out * block.normal).addcmul_(gradient.out, tangent.normal).sum(1, keepdim=True)
            mean = torch.addcmul(shift, block.normal, scale).addcmul_(tangent.normal, gradient.scale)
            factor = block.scale * block.inverse
            still = _direction(block, gradient)
            moved = mean.mul_(-1 / mean.shape[1]).add_(out).mul_(factor).addcmul_(still, tangent.factor)
            rounded, z = self._rounded(moved), self._rounded(still.mul_(factor))
            weight = weight_gradient(rounded, unmoved).to(moved.dtype)
            weight += weight_gradient(z, moving)
            found |= _named(number, BlockValues(weight, scale, shift))
            along = _of_block(direction, number).weight
            both = torch.cat([rounded, z], dim=2), torch.cat([block.weight, along], dim=1)  # the sum of their products
            hidden = self._fold(self._tangent_product(*both), block.halving.size)
        self._tangents = []
        hidden = self._before_pool(self._first_halving, _where_positive(self._first_out, hidden))
        return found | _named(0, self._first.backward_tangent(hidden))

    def _halved(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        return (height // 2, width // 2) if self._stride == 1 else ((height + 1) // 2, (width + 1) // 2)

    def _fold(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the sums (g, n·h·w, c) over the patches that each value is in: the transpose of `_unfold`."""
        stride = self._stride
        down, right = (-(-length // stride) for length in size)
        windows = patches.view(self._groups * self._count, down, right, _TAPS, _TAPS, -1)
        maps = patches.new_empty(len(windows), *size, windows.shape[-1])
        rows, columns = ([_reach(tap, length, stride) for tap in range(_TAPS)] for length in size)
        for i, j in itertools.product((1, 2, 0), repeat=2):  # from the middle: the first to reach a value reach all
            source, target = windows[:, rows[i][0], columns[j][0], i, j], maps[:, rows[i][1], columns[j][1]]
            if 0 < i <= stride and 0 < j <= stride:
                target.copy_(source)
            else:
                target.add_(source)
        return maps.view(self._groups, -1, windows.shape[-1])

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self._tangent_precision)

    def _tangent_product(self, left: Tensor, right: Tensor) -> Tensor:
        return (left @ self._rounded(right)).to(self._dtype)

    def _images(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps (g, n·h·w, o) as (g·n, o, h, w)."""
        return rows.view(-1, *size, rows.shape[-1]).permute(0, 3, 1, 2)

    def _rows(self, images: Tensor) -> Tensor:
        """Return (g·n, o, …) as maps (g, n·h·w, o)."""
        return images.flatten(2).mT.reshape(self._groups, -1, images.shape[1])

    def _features(self, rows: Tensor) -> Tensor:
        """Return the last maps as features, channel by channel as `unfold_groups` gives them."""
        return rows.view(self._groups, self._count, -1, rows.shape[-1]).mT.flatten(2)

    def _from_features(self, features: Tensor) -> Tensor:
        """Return features as maps: the inverse of `_features`."""
        channels = self._first_out.shape[-1]
        return features.view(self._groups, self._count, channels, -1).mT.reshape(self._groups, -1, channels)

    def _halve(self, rows: Tensor, size: tuple[int, int], pooled: bool) -> tuple[_Halving, Tensor]:
        """Return how the map u (g, n·h·w, o) of a block whose input has a size is halved, and that half."""
        if not pooled:
            return _Halving(size, None), rows
        most, indices = F.max_pool2d_with_indices(self._images(rows, size), [2, 2])
        return _Halving(size, indices.flatten(2)), self._rows(most)

    def _pooled(self, halving: _Halving, rows: Tensor) -> Tensor:
        """Return, where there is a max-pool, what that chose when it saw u."""
        if halving.indices is None:
            return rows
        return self._rows(self._images(rows, halving.size).flatten(2).gather(2, halving.indices))

    def _before_pool(self, halving: _Halving, gradient: Tensor) -> Tensor:
        """Return the gradient before the max-pool, where there is one, from that after it."""
        if halving.indices is None:
            return gradient
        height, width = halving.size
        before = gradient.new_zeros(self._groups, self._count * height * width, gradient.shape[-1])
        images = self._images(gradient, self._halved(halving.size)).flatten(2)
        self._images(before, halving.size).flatten(2).scatter_add_(2, halving.indices, images)
        return before

    def _activation(self, block: _Block) -> Tensor:
        """Return u (g, n·h·w, o), max-pooled where the block has a max-pool."""
        return self._pooled(block.halving, torch.addcmul(block.shift, block.normal, block.scale))


def _unfold(rows: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return the patches (g, n·h'·w', 9·c) that a convolution sees of maps (g, n·h·w, c)."""
    groups, _, channels = rows.shape
    padded = F.pad(rows.view(-1, *size, channels), (0, 0, 1, 1, 1, 1))
    examples, down, right, each = padded.stride()
    outer = [-(-length // stride) for length in size]
    windows = padded.as_strided(
        (len(padded), *outer, _TAPS, _TAPS, channels), (examples, stride * down, stride * right, down, right, each)
    )
    return windows.reshape(groups, -1, _TAPS * _TAPS * channels)


def _reach(tap: int, length: int, stride: int) -> tuple[slice, slice]:
    """Return which windows see an image by this tap, along an axis of that length, and which values they see."""
    first, last = (1 if tap == 0 else 0), (length - max(tap, 1)) // stride
    return slice(first, last + 1), slice(stride * first + tap - 1, stride * last + tap, stride)


def _where_positive(out: Tensor, values: Tensor) -> Tensor:
    """Return values, 0 where `out` is not positive; many times faster than `torch.where`."""
    positive: Tensor = torch.ops.aten.threshold_backward(values, out, 0)
    return positive


def _direction(block: _Block, gradient: _Gradient) -> Tensor:
    """Return e."""
    mean = torch.addcmul(gradient.shift, block.normal, gradient.scale)
    return mean.mul_(-1 / mean.shape[1]).add_(gradient.out)


def _of_block(values: Mapping[str, Tensor], number: int) -> BlockValues:
    """Return what belongs to a block's weights, as its operations take it."""
    name = f"blocks.{number}"
    weight = values[f"{name}.conv.weight"].permute(0, 1, 3, 4, 2).flatten(2)
    return BlockValues(weight, values[f"{name}.norm.weight"].unsqueeze(1), values[f"{name}.norm.bias"].unsqueeze(1))


def _named(number: int, found: BlockValues) -> dict[str, Tensor]:
    """Return what was found by the names of the parameters, and of their shapes; the weight in channels-last."""
    name = f"blocks.{number}"
    taps = found.weight.view(*found.weight.shape[:2], _TAPS, _TAPS, -1)
    return {
        f"{name}.conv.weight": taps.permute(0, 1, 4, 2, 3),
        f"{name}.norm.weight": found.scale.squeeze(1),
        f"{name}.norm.bias": found.shift.squeeze(1),
    }
