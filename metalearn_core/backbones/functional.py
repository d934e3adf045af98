"""The layers as pure functions of weights and x, for one group of examples or several, weights shared or per group.

A group is what a batch norm takes its statistics over: an episode. Activations are (n, g·c, h, w): with one group that
is the ordinary layout, and the ordinary kernels run, in channels-last.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5


def channels_last(weight: Tensor) -> Tensor:
    """Return the weight of a convolution as convolutions take it, so that none copies it again; others as they are."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def fold_groups(x: Tensor) -> Tensor:
    """Return x (g, n, c, h, w) as (n, g·c, h, w), channels-last."""
    folded = x.squeeze(0) if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2)
    if folded.shape[1] == 1:
        # One channel is in both layouts at once, and torch would go on in the slow one: say which by the strides.
        return folded.flatten(1).view(-1, *folded.shape[2:], 1).permute(0, 3, 1, 2)
    return folded.contiguous(memory_format=torch.channels_last)


def unfold_groups(x: Tensor, groups: int) -> Tensor:
    """Return x (n, g·c, h, w) as feature vectors (g, n, c·h·w)."""
    examples, channels, height, width = x.shape
    return x.view(examples, groups, channels // groups, height, width).transpose(0, 1).flatten(2)


def convolve(x: Tensor, weight: Tensor, groups: int, stride: int, bias: Tensor | None = None) -> Tensor:
    """Convolve x (n, g·c, h, w) with weight (o, c, k, k), or (g, o, c, k, k) for weights per group; padded.

    Args:
        x: activations.
        weight: shared or per group.
        groups: g.
        stride: in both directions.
        bias: (o,), or (g, o) for one per group.

    Returns:
        (n, g·o, h / stride, w / stride), sizes rounded up.
    """
    if weight.dim() == 4 and groups > 1:
        weight = weight.expand(groups, *weight.shape)
    if weight.dim() == 5:
        weight = weight.flatten(0, 1)
    if bias is not None:
        bias = bias.expand(groups, -1).flatten()
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map x (g, n, i) by weight (o, i) and bias (o,), or (g, o, i) and (g, o) for weights per group; (g, n, o)."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if x.shape[0] == 1:
        return F.linear(x, weight[0], bias[0])
    return x @ weight.mT + bias.unsqueeze(1)


def normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Batch-normalise x (n, g·c, h, w), each group by its own statistics.

    Args:
        x: activations.
        weight, bias: scale and shift, (c,) or (g, c).
        groups: g.

    Returns:
        the activations (n, g·c, h, w), and the mean and biased variance that were used, each (g, c), differentiable.
    """
    scale, shift = (value.expand(groups, -1).flatten() for value in (weight, bias))
    x, mean, variance = _BatchNorm.apply(x, scale, shift)  # type: ignore[no-untyped-call]
    return x, mean.view(groups, -1), variance.view(groups, -1)


def fold_norm(convolution: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does what a convolution and a batch norm by given statistics do.

    The batch norm costs nothing then: activations are many, weights few.

    Args:
        convolution: weight (o, c, k, k), or (g, o, c, k, k) for weights per group.
        weight, bias: the batch norm's scale and shift, (o,) or (g, o).
        mean, var: its statistics, (1, o) or (g, o).

    Returns:
        (o, c, k, k) and (o,) where nothing is per group, else (g, o, c, k, k) and (g, o).
    """
    factor = weight * torch.rsqrt(var + EPSILON)
    folded, shift = convolution * factor[..., None, None, None], bias - mean * factor
    return (folded.squeeze(0), shift.squeeze(0)) if len(factor) == 1 else (folded, shift)


def convolve_normalised(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, groups: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve and batch-normalise x (n, g·c, h, w), each group by its own statistics, in one pass over the output.

    The statistics of a convolution's output follow from those of its input's patches: mean w·m and variance wᵀCw, with
    m and C the mean and covariance of the k·k·c numbers under the kernel. So the batch norm is folded into the weight
    before anything is convolved. It pays where a patch is small, and no gradient with respect to x is wanted: of the
    first layer of a network that layer's activations are the largest, and are gone over once instead of thrice.

    Args:
        x: examples, without gradient.
        weight: (o, c, k, k), or (g, o, c, k, k) for weights per group.
        scale, shift: of the batch norm, (o,) or (g, o).
        groups: g.
        stride: of the convolution.

    Returns:
        the activations (n, g·o, h / stride, w / stride), and mean and biased variance (g, o), differentiable.
    """
    with torch.autocast(x.device.type, enabled=False):
        patches_mean, covariance = _patch_moments(x, groups, weight.shape[-1], stride)
        rows = weight.flatten(-3)
        mean = (rows @ patches_mean.unsqueeze(-1)).squeeze(-1)
        variance = (rows @ covariance * rows).sum(-1)
        folded, bias = fold_norm(weight, scale, shift, mean, variance)
    return convolve(x, folded, groups, stride, bias), mean, variance


def convolve_and_normalise(
    x: Tensor,
    weights: Mapping[str, Tensor],
    name: str,
    statistics: Mapping[str, Tensor] | None,
    groups: int,
    stride: int = 1,
    *,
    examples: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Convolve and batch-normalise x (n, g·c, h, w), in the quickest of the ways above.

    Args:
        x: activations.
        weights: of the network; `<name>.conv.weight`, `<name>.norm.weight` and `<name>.norm.bias` are used.
        name: of the layer.
        statistics: to use, `<name>.norm.mean` and `<name>.norm.var`; None: those of each group itself.
        groups: g.
        stride: of the convolution.
        examples: x are the network's inputs, and want no gradient.

    Returns:
        the activations (n, g·o, h / stride, w / stride), and the statistics that were used by name, each (g, o).
    """
    weight = weights[f"{name}.conv.weight"]
    scale, shift = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
    names = f"{name}.norm.mean", f"{name}.norm.var"
    if statistics is not None:
        mean, var = (statistics[which] for which in names)
        weight, bias = fold_norm(weight, scale, shift, mean, var)
        x, mean, var = convolve(x, weight, groups, stride, bias), mean.expand(groups, -1), var.expand(groups, -1)
    elif examples:
        x, mean, var = convolve_normalised(x, weight, scale, shift, groups, stride)
    else:
        x, mean, var = normalise(convolve(x, weight, groups, stride), scale, shift, groups)
    return x, dict(zip(names, (mean, var), strict=True))


@torch.no_grad()
def _patch_moments(x: Tensor, groups: int, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return mean (g, p) and biased covariance (g, p, p) of the patches under a padded kernel of x (n, g·c, h, w)."""
    padded = F.pad(x, [kernel // 2] * 4)
    example, channel, row, column = padded.stride()
    channels = x.shape[1] // groups
    size = (groups, channels, kernel, kernel, len(x), *(-(-length // stride) for length in x.shape[2:]))
    strides = (channels * channel, channel, row, column, example, stride * row, stride * column)
    rows = padded.as_strided(size, strides).reshape(groups, channels * kernel * kernel, -1)
    mean = rows.mean(dim=-1, keepdim=True)
    centred = rows - mean
    return mean.squeeze(-1), centred @ centred.mT / rows.shape[-1]


class _BatchNorm(torch.autograd.Function):
    """Batch norm by its own statistics, which are outputs with gradients too; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, EPSILON)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.set_materialize_grads(False)
        return out, mean.clone(), (inverse.pow(-2) - EPSILON).clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight, mean, inverse = ctx.saved_tensors
        out_gradient, mean_gradient, variance_gradient = gradients
        x_gradient = weight_gradient = bias_gradient = None
        if out_gradient is not None:
            x_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
                out_gradient, x, weight, None, None, mean, inverse, True, EPSILON, [True, True, True]
            )
        count = x.numel() // x.shape[1]
        if mean_gradient is not None:
            through_mean = (mean_gradient / count).view(1, -1, 1, 1).expand_as(x).to(x.dtype)
            x_gradient = through_mean if x_gradient is None else x_gradient + through_mean
        if variance_gradient is not None:
            centred = x - x.mean((0, 2, 3), keepdim=True)
            through_variance = ((2 / count) * variance_gradient).view(1, -1, 1, 1).to(x.dtype) * centred
            x_gradient = through_variance if x_gradient is None else x_gradient + through_variance
        return x_gradient, weight_gradient, bias_gradient
