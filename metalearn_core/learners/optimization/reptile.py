"""Reptile: move the shared weights towards those that ordinary training on a task ends with."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, Outcome, query_outcome
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner, Weights

_SECOND_DECAY, _EPSILON = 0.999, 1e-8


class ReptileConfig(FastWeightConfig):
    """The options of reptile."""

    optimiser: Literal["adam", "sgd"] = Field("sgd", description="the outer optimiser")
    learning_rate: float = Field(1.0, gt=0, description="ε, the outer step at the start")
    schedule: Literal["cosine", "constant", "linear", "halving"] = Field(
        "linear", description="of the outer step over the training budget; linear ends at zero"
    )
    meta_batch: int = Field(5, ge=1, description="episodes an outer step")
    inner_lr: float = Field(1e-3, gt=0, description="of the inner optimiser, Adam with β₁ = 0")
    inner_steps: int = Field(5, ge=1, le=1000, description="inner steps in training")
    eval_steps: int = Field(50, ge=1, le=1000, description="inner steps in evaluation and prediction")
    inner_batch: int = Field(10, ge=1, description="support examples an inner step, in turn")
    train_shot: int = Field(10, ge=1, description="support examples a class of a training episode")
    train_query: int = Field(1, ge=1, description="queries a class of a training episode: they are only reported")


class Reptile(FastWeightLearner):
    """Reptile (Nichol, Achiam, Schulman 2018), with a linear head on the backbone.

    φ = U(θ): some steps of Adam with β₁ = 0 on mini-batches of the support set, from θ. Then θ ← θ + ε (φ − θ)
    (algorithm 1), which is a step of SGD with rate ε on ½‖θ − φ‖², φ being held. No queries are needed to learn.
    """

    info = LearnerInfo(
        name="reptile",
        family="optimization",
        paper="Nichol, Achiam, Schulman 2018, On First-Order Meta-Learning Algorithms",
        fixed_way=True,
        order_invariant=False,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ReptileConfig
    config: ReptileConfig

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the way of evaluation, with more shots than there: mini-batches are drawn from them."""
        assert isinstance(config, ReptileConfig)
        return EpisodeShape(way=shape.way, shot=max(shape.shot, config.train_shot), query=config.train_query)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that a mini-batch's tape fits; nothing is remembered from one inner step to the next."""
        remembered = min(self.config.inner_batch, shape.way * shape.shot) * self.backbone.tape_values
        return max(1, min(4, 2_600_000 // remembered)) if remembered else 1

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """Not used: Adam's step needs the mean squares too."""
        raise NotImplementedError

    def trajectory(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> Iterator[Weights]:
        """Yield the weights after each step of Adam with β₁ = 0; never with a graph."""
        del differentiable
        weights = {name: value.detach().clone() for name, value in self.start(x, y, present).items()}
        squares = {name: torch.zeros_like(value) for name, value in weights.items()}
        size = min(self.config.inner_batch, x.shape[1])
        for number in range(self.steps):
            rows = torch.arange(number * size, (number + 1) * size, device=x.device) % x.shape[1]
            leaves = {name: value.requires_grad_() for name, value in weights.items()}
            gradients = self.inner_gradient(leaves, x[:, rows], y[:, rows], present, second_order=False)
            correction = 1 - _SECOND_DECAY ** (number + 1)
            moved = {}
            with torch.no_grad():
                for name, weight in weights.items():
                    gradient = gradients[name]
                    squares[name] = torch.lerp(squares[name], gradient.square(), 1 - _SECOND_DECAY)
                    step = gradient / ((squares[name] / correction).sqrt() + _EPSILON)
                    moved[name] = weight - self.config.inner_lr * step
            weights = moved
            yield weights

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return ½‖θ − φ‖² of each episode (b,), and the accuracy of φ on its queries."""
        with torch.no_grad():
            state = self.adapt(
                episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask
            )
            found = query_outcome(self.predict(state, episodes.query_x, episodes.query_mask), episodes)
        distances = [(value - state[name]).square().flatten(1).sum(dim=1) for name, value in self.shared().items()]
        return Outcome(torch.stack(distances).sum(dim=0) / 2, found.accuracies)
