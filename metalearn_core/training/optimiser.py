"""The outer optimisers: torch's own load its compiler first, which takes longer than many a training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimiser(ABC):
    """Changes parameters in place along gradients.

    Attributes:
        steps: taken so far.
        slots: what it remembers, by name: a tensor a parameter.
    """

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        self._parameters, self._weight_decay = list(parameters), weight_decay
        self.steps = 0
        self.slots: Mapping[str, list[Tensor]] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Take one step along gradients, a tensor a parameter."""
        self.steps += 1
        torch._foreach_mul_(self._parameters, 1 - learning_rate * self._weight_decay)
        self._move(list(gradients), learning_rate)

    @abstractmethod
    def _move(self, gradients: list[Tensor], learning_rate: float) -> None:
        """Move the parameters."""


class SGD(Optimiser):
    """Stochastic gradient descent, without momentum, with decoupled weight decay."""

    def _move(self, gradients: list[Tensor], learning_rate: float) -> None:
        torch._foreach_add_(self._parameters, gradients, alpha=-learning_rate)


class AdamW(Optimiser):
    """Adam (Kingma, Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov, Hutter 2019, algorithm 2).

    Args:
        parameters: changed in place by each step.
        weight_decay: λ; a step takes off λ times the learning rate of each parameter.

    Attributes:
        slots: `first` and `second`, running means of the gradients and of their squares.
    """

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        super().__init__(parameters, weight_decay)
        self.slots = {name: [torch.zeros_like(value) for value in self._parameters] for name in ("first", "second")}

    def _move(self, gradients: list[Tensor], learning_rate: float) -> None:
        (one, two), first, second = BETAS, self.slots["first"], self.slots["second"]
        torch._foreach_lerp_(first, gradients, 1 - one)
        torch._foreach_mul_(second, two)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - two)
        divisors = torch._foreach_sqrt(second)
        torch._foreach_div_(divisors, math.sqrt(1 - two**self.steps))
        torch._foreach_add_(divisors, EPSILON)
        torch._foreach_addcdiv_(self._parameters, first, divisors, -learning_rate / (1 - one**self.steps))


OPTIMISERS: dict[str, type[Optimiser]] = {"adam": AdamW, "sgd": SGD}
