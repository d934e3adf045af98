"""The loss of an inner step as what gradient descent needs of it: its derivatives with respect to the outputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


class SupportLoss(ABC):
    """The mean loss over each of b support sets of s examples, of outputs (b, s, o)."""

    @abstractmethod
    def gradient(self, outputs: Tensor) -> Tensor:
        """Return the gradient with respect to the outputs (b, s, o); differentiable."""

    @abstractmethod
    def tangent(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """Return the derivative (b, s, o) of that gradient as the outputs move along `direction`."""

    @abstractmethod
    def of(self, rows: Tensor) -> Self:
        """Return the mean loss over the examples at some rows (n,) of each support set."""


@dataclass(frozen=True)
class CrossEntropy(SupportLoss):
    """−log softmax(outputs)_y, among the classes that have support.

    Attributes:
        y: (b, s) labels.
        present: (b, way) bool; the other classes take no part.
    """

    y: Tensor
    present: Tensor

    def gradient(self, outputs: Tensor) -> Tensor:
        """Return (softmax(outputs) − one-hot(y)) / s."""
        targets = F.one_hot(self.y, outputs.shape[-1]).to(outputs.dtype)
        return (self._share(outputs) - targets) / outputs.shape[1]

    def tangent(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """Return p (d − Σ p d) / s for p = softmax(outputs) and the direction d."""
        share = self._share(outputs)
        return share * (direction - (share * direction).sum(dim=-1, keepdim=True)) / outputs.shape[1]

    def of(self, rows: Tensor) -> "CrossEntropy":
        """Return the loss over some examples; the classes that take part stay those of the whole support set."""
        return CrossEntropy(self.y[:, rows], self.present)

    def _share(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs.masked_fill(~self.present.unsqueeze(1), -torch.inf), dim=-1)


@dataclass(frozen=True)
class SquaredError(SupportLoss):
    """(outputs − y)², averaged over the d numbers of a target.

    Attributes:
        y: (b, s, d) targets.
    """

    y: Tensor

    def gradient(self, outputs: Tensor) -> Tensor:
        """Return 2 (outputs − y) / (s d)."""
        return (outputs - self.y) * (2 / self.y[0].numel())

    def tangent(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """Return 2 direction / (s d)."""
        del outputs
        return direction * (2 / self.y[0].numel())

    def of(self, rows: Tensor) -> "SquaredError":
        """Return the loss over some examples."""
        return SquaredError(self.y[:, rows])


def support_loss(y: Tensor, present: Tensor) -> SupportLoss:
    """Return the loss for labels y (b, s), or for real targets y (b, s, d).

    Args:
        y: of the support sets.
        present: (b, way) which classes have support; without meaning for real targets.
    """
    return SquaredError(y) if y.is_floating_point() else CrossEntropy(y, present)
