"""Reptile: move the shared weights towards those that ordinary training on a task ends with."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.learners.contract import Learner, LearnerConfig, LearnerInfo, Outcome, State, query_outcome
from metalearn_core.learners.optimization.fast_weights import EPISODES_AT_ONCE, FastWeightConfig, FastWeightLearner
from metalearn_core.learners.optimization.inner_loop import cut
from metalearn_core.learners.optimization.support_loss import support_loss

BETA_2, EPSILON = 0.999, 1e-8


class ReptileConfig(FastWeightConfig):
    """The options of reptile.

    The paper's for Omniglot are inner rate 1e-3, 5 inner steps, meta-batch 5 and 100,000 outer steps.
    """

    optimiser: Literal["adam", "sgd"] = Field("sgd", description="the outer optimiser")
    learning_rate: float = Field(1.0, gt=0, description="ε, the outer step at the start")
    schedule: Literal["cosine", "constant", "linear", "halving"] = Field(
        "linear", description="of the outer step over the training budget; linear ends at zero"
    )
    meta_batch: int = Field(5, ge=1, description="episodes an outer step")
    inner_optimiser: Literal["adam", "sgd"] = Field("adam", description="of the inner steps; adam is with β₁ = 0")
    inner_lr: float = Field(1e-3, gt=0, description="of the inner optimiser")
    inner_steps: int = Field(5, ge=1, le=1000, description="inner steps in training, a mini-batch each")
    inner_batch: int = Field(10, ge=1, description="support examples of a mini-batch, in turn")
    eval_steps: int = Field(
        50, ge=1, le=1000, description="inner steps in evaluation and prediction, the whole support set each"
    )
    train_shot: int = Field(10, ge=1, description="support examples per class of a training episode")
    train_query: int = Field(1, ge=1, description="queries per class of a training episode: they are only reported")


class Reptile(FastWeightLearner):
    """Reptile (Nichol, Achiam, Schulman 2018), with a linear head on the backbone.

    φ = U(θ): some steps of Adam with β₁ = 0 (or of SGD) on mini-batches of the support set, from θ. Then
    θ ← θ + ε (φ − θ) (algorithm 1), which is a step of SGD with rate ε on ½‖θ − φ‖², φ being held. No queries are
    needed to learn. Adam's mean squares begin anew with each episode; the authors' code keeps them from task to task.

    In evaluation a step takes the whole support set, so that the order of the examples says nothing. So it does in the
    published command for Omniglot 5-way 1-shot; with more examples it is mostly a mini-batch there too.
    """

    info = LearnerInfo(
        name="reptile",
        family="optimization",
        paper="Nichol, Achiam, Schulman 2018, On First-Order Meta-Learning Algorithms",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ReptileConfig
    config: ReptileConfig

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the way of evaluation, with more shots than there: mini-batches are drawn from them."""
        assert isinstance(config, ReptileConfig)
        if shape.shot <= config.train_shot:
            shape = replace(shape, shot=config.train_shot, min_shot=None)
        return super().train_shape(shape, config)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that small operations cost less together; inner steps remember nothing of one another."""
        return max(EPISODES_AT_ONCE, Learner.episodes_at_once(self, shape))

    def fast_state(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> State:
        """Return the state of φ, which has no graph in any case."""
        del differentiable
        weights = {name: cut(value) for name, value in self.start(x, y, present).items()}
        squares = {name: torch.zeros_like(value) for name, value in weights.items()}
        loss, examples = support_loss(y, present), x.shape[1]
        size = min(self.config.inner_batch, examples) if self.training else examples
        of_all = self.inner_gradient(x, loss, second_order=False) if size == examples else None
        for number in range(self.steps):
            rows = torch.arange(number * size, (number + 1) * size, device=x.device) % examples
            gradient_of = of_all or self.inner_gradient(x[:, rows], loss.of(rows), second_order=False)
            for name, gradient in gradient_of(weights).items():
                step = gradient
                if self.config.inner_optimiser == "adam":  # v ← β₂ v + (1 − β₂) g², and g / (√(v / (1 − β₂ᵗ)) + ε)
                    squares[name] = torch.lerp(squares[name], gradient.square(), 1 - BETA_2)
                    step = gradient / ((squares[name] / (1 - BETA_2 ** (number + 1))).sqrt() + EPSILON)
                weights[name] = cut(weights[name] - self.config.inner_lr * step)
        return {name: value.detach() for name, value in self._state(weights, x, present).items()}

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return ½‖θ − φ‖² of each episode (b,), and the accuracy of φ on its queries."""
        with torch.no_grad():
            state = self.adapt(
                episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask
            )
            found = query_outcome(self.predict(state, episodes.query_x, episodes.query_mask), episodes)
        distances = [(value - state[name]).square().flatten(1).sum(dim=1) for name, value in self.shared().items()]
        return Outcome(torch.stack(distances).sum(dim=0) / 2, found.accuracies)
