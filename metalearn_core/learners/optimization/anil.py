"""ANIL: almost no inner loop; only the head is adapted, to features that are meta-learned."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.backbones.functional import linear
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.learners.contract import Learner, LearnerConfig, LearnerInfo, Outcome, State, query_outcome
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner
from metalearn_core.learners.optimization.inner_gradient import HEAD_BIAS, HEAD_WEIGHT
from metalearn_core.learners.optimization.support_loss import support_loss


class ANILConfig(FastWeightConfig):
    """The options of anil."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    inner_lr: float = Field(0.1, gt=0, description="α, the size of an inner step")
    inner_steps: int = Field(5, ge=1, le=1000, description="inner steps in training; each costs hardly anything")
    eval_steps: int = Field(10, ge=1, le=1000, description="inner steps in evaluation and prediction")


class ANIL(FastWeightLearner):
    """Almost no inner loop (Raghu, Raghu, Bengio, Vinyals 2020, section 4), with a linear head on the backbone.

    MAML whose inner steps move the head alone: θ_head ← θ_head − α ∇L. The features of a support set are the same at
    each step, so that they are computed once, and a step is a few products of small matrices. The outer gradient flows
    through the steps into the features.
    """

    info = LearnerInfo(
        name="anil",
        family="optimization",
        paper="Raghu, Raghu, Bengio, Vinyals 2020, Rapid Learning or Feature Reuse? Towards Understanding MAML",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ANILConfig
    moves_backbone = False
    config: ANILConfig

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return as many as a metric learner: an episode is a pass of the backbone."""
        return Learner.episodes_at_once(self, shape)

    def fast_state(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> State:
        """Return the heads after the last step, ∇L with respect to a head being eᵀf and Σ e, e ∇L of its outputs."""
        loss, rate = support_loss(y, present), self.config.inner_lr
        with torch.set_grad_enabled(differentiable), torch.autocast(x.device.type, enabled=False):
            features, statistics = self.backbone.embed(dict(self.backbone.named_parameters()), x)
            weight, bias = (value.expand(len(x), *value.shape) for value in (self.head.weight, self.head.bias))
            for _ in range(self.steps):
                error = loss.gradient(linear(features, weight, bias))
                weight, bias = weight - rate * (error.mT @ features), bias - rate * error.sum(dim=1)
        return self._state({HEAD_WEIGHT: weight, HEAD_BIAS: bias}, x, present, statistics)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,); they depend on the shared backbone not through the heads alone."""
        return query_outcome(self(episodes), episodes)
