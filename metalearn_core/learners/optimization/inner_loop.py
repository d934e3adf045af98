"""Inner steps on all the weights at once, through which the outer gradient flows."""

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.learners.contract import State
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner, Weights
from metalearn_core.learners.optimization.support_loss import support_loss


class InnerLoopConfig(FastWeightConfig):
    """The options of every learner whose outer gradient flows through inner steps."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    first_order: bool = Field(False, description="leave out second derivatives: the outer gradient at θ′, taken as θ's")


class InnerLoopLearner(FastWeightLearner):
    """Moves the weights of each episode by gradient steps on its support set.

    A learner says where they start (`start`), and how a step moves them (`step`).
    """

    config: InnerLoopConfig

    @property
    def first_order(self) -> bool:
        """Whether second derivatives are left out now: the outer gradient at the fast weights is taken as θ's."""
        return self.config.first_order

    @abstractmethod
    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """Return the fast weights after step `number` (from 0), from those before and the support loss's gradient."""

    def fast_state(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> State:
        """Return the state after the last step; of no step, that of the weights it would start from."""
        last = self.start(x, y, present) if self.steps == 0 else {}
        for weights in self.trajectory(x, y, present, differentiable):
            last = weights  # the others are let go
        return self._state(last, x, present)

    def trajectory(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> Iterator[Weights]:
        """Yield the fast weights after each inner step, keeping their graph only where `differentiable`."""
        keep: Callable[[Tensor], Tensor] = (lambda value: value) if differentiable else cut
        with torch.set_grad_enabled(differentiable):
            start = self.start(x, y, present)
        # A head that is made of features without parameters has no graph, and still is what the steps move.
        weights: Weights = {name: keep(value) if value.requires_grad else cut(value) for name, value in start.items()}
        gradient = self.inner_gradient(x, support_loss(y, present), differentiable and not self.first_order)
        for number in range(self.steps):
            moved = self.step(weights, gradient(weights), number)
            weights = {name: keep(value) for name, value in moved.items()}
            yield weights


def cut(value: Tensor) -> Tensor:
    """Return the value as the start of a new graph."""
    return value.detach().requires_grad_()
