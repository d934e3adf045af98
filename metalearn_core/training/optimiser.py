"""The outer optimiser: torch's own AdamW loads its compiler first, which takes longer than many a training."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Adam (Kingma, Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov, Hutter 2019, algorithm 2).

    Args:
        parameters: changed in place by each step.
        weight_decay: λ; a step takes off λ times the learning rate of each parameter.

    Attributes:
        first, second: running means of the gradients and of their squares, a tensor a parameter.
        steps: taken so far.
    """

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        self._parameters, self._weight_decay = list(parameters), weight_decay
        self.first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Take one step along gradients, a tensor a parameter."""
        self.steps += 1
        one, two, gradients = *BETAS, list(gradients)
        torch._foreach_mul_(self._parameters, 1 - learning_rate * self._weight_decay)
        torch._foreach_lerp_(self.first, gradients, 1 - one)
        torch._foreach_mul_(self.second, two)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - two)
        divisors = torch._foreach_sqrt(self.second)
        torch._foreach_div_(divisors, math.sqrt(1 - two**self.steps))
        torch._foreach_add_(divisors, EPSILON)
        torch._foreach_addcdiv_(self._parameters, self.first, divisors, -learning_rate / (1 - one**self.steps))
