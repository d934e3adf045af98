"""The block that sees a network's examples, as one product: its batch norm follows from what the examples are.

Examples do not move while weights do. So the statistics of their convolution need no pass over its output: of patches U
(rows) with mean m and covariance C, U wᵀ has mean μ = m·w and variance v = wᵀCw, and the batch norm of it is

    u = U Ŵᵀ + b̂,    Ŵ = γ r W,    b̂ = β − γ r μ,    r = (v + ε)^−½.

What depends on W is as small as W, and so are the derivatives. With A = ∂uᵀU, s = Σ∂u and q = Σ A∘W − s μ, where ∂ is
the gradient of the loss with respect to what follows,

    ∂β = s    ∂γ = r q    ∂W = γ r (A − s mᵀ − r² q W C),

and R{·} of all that, as the weights move, follows by the rules of calculus; U, m and C are fixed. The first map is the
largest of a network; two products and a ReLU pass over it here, where batch norm and its derivative do so ten times.
Queries pass once, and with autograd: for them `functional.convolve_normalised` folds in the same way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn_core.backbones.functional import EPSILON


@dataclass(frozen=True)
class BlockValues:
    """A block's weights, or what they move along, or their gradient; each group's own.

    Attributes:
        weight: W, (g, o, k); k numbers are in a patch.
        scale: γ, (g, 1, o).
        shift: β, (g, 1, o).
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class ExamplePatches:
    """What a block sees of g groups of examples, whatever its weights are.

    Attributes:
        rows: U, (g, N, k + 1): a row an output pixel, a one behind its patch, so that a product with Ŵ adds b̂ too.
        mean: m, (g, 1, k).
        covariance: C, (g, k, k).
    """

    rows: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> "ExamplePatches":
        """Return patches (g, N, k) with their moments; the covariance about the mean, as fp32 needs it."""
        mean = patches.mean(1, keepdim=True)
        centred = patches - mean
        rows = torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], dim=2)
        return cls(rows, mean, centred.mT @ centred / patches.shape[1])


class ExamplesBlock:
    """Convolution and batch norm of g groups of examples. The methods are called in their order, without grad.

    Args:
        patches: of the examples.
        values: of the weights.
    """

    def __init__(self, patches: ExamplePatches, values: BlockValues) -> None:
        self._rows, self._mean, self._covariance = patches.rows, patches.mean, patches.covariance
        self._weight, self._scale, self._shift = values.weight, values.scale.mT, values.shift.mT
        self._spread = self._weight @ self._covariance  # W C
        variance = (self._spread * self._weight).sum(2, keepdim=True).clamp_min(0)  # v, by rounding below 0
        self._inverse = torch.rsqrt(variance + EPSILON)  # r
        self._average = self._weight @ self._mean.mT  # μ
        self._factor = self._scale * self._inverse  # γ r

    def forward(self) -> Tensor:
        """Return u (g, N, o)."""
        shift = self._shift - self._factor * self._average
        return self._rows @ torch.cat([self._factor * self._weight, shift], dim=2).mT

    def backward(self, gradient: Tensor) -> BlockValues:
        """Return the gradient with respect to the weights, from ∂u (g, N, o)."""
        self._outer, self._total = _parted(weight_gradient(gradient, self._rows))  # A and s
        self._correlation = (self._outer * self._weight).sum(2, keepdim=True) - self._total * self._average  # q
        self._slope = self._outer - self._total * self._mean  # ∂W / (γ r)
        self._slope -= self._inverse.square() * self._correlation * self._spread
        return BlockValues(self._factor * self._slope, (self._inverse * self._correlation).mT, self._total.mT)

    def forward_tangent(self, direction: BlockValues) -> Tensor:
        """Return R{u} (g, N, o), as the weights move along `direction`."""
        self._along = direction.weight
        variance = 2 * (self._spread * self._along).sum(2, keepdim=True)
        self._inverse_moves = self._inverse.pow(3) * variance / -2
        self._average_moves = self._along @ self._mean.mT
        self._factor_moves = direction.scale.mT * self._inverse + self._scale * self._inverse_moves
        weight = self._factor_moves * self._weight + self._factor * self._along
        shift = direction.shift.mT - self._factor_moves * self._average - self._factor * self._average_moves
        return self._rows @ torch.cat([weight, shift], dim=2).mT

    def backward_tangent(self, gradient_tangent: Tensor) -> BlockValues:
        """Return R{the gradient with respect to the weights}, from R{∂u} (g, N, o)."""
        outer, total = _parted(weight_gradient(gradient_tangent, self._rows))  # R{A} and R{s}
        correlation = (outer * self._weight + self._outer * self._along).sum(2, keepdim=True)  # R{q}
        correlation -= total * self._average + self._total * self._average_moves
        square = self._inverse.square()
        coefficient = 2 * self._inverse * self._inverse_moves * self._correlation + square * correlation  # R{r² q}
        slope = outer - total * self._mean - coefficient * self._spread
        slope -= square * self._correlation * (self._along @ self._covariance)
        weight = self._factor_moves * self._slope + self._factor * slope
        scale = self._inverse_moves * self._correlation + self._inverse * correlation
        return BlockValues(weight, scale.mT, total.mT)


def _parted(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return what belongs to the patches (g, o, k), and to the one behind them (g, o, 1)."""
    return sums[..., :-1], sums[..., -1:]


def weight_gradient(gradient: Tensor, patches: Tensor) -> Tensor:
    """Return ∂zᵀ U (g, o, k) of a product z = U Wᵀ, from ∂z (g, n, o) and U (g, n, k)."""
    if patches.shape[-1] > gradient.shape[-1]:
        return gradient.mT @ patches
    return (patches.mT @ gradient).mT.contiguous()  # several times faster where U is the narrow one
