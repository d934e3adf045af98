"""ANIL: almost no inner loop; only the head is adapted, to features that are meta-learned."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.functional import linear
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, Outcome, query_outcome
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner, Weights
from metalearn_core.learners.optimization.inner_gradient import HEAD_BIAS, HEAD_WEIGHT


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
        paper="Raghu, Raghu, Bengio, Vinyals 2020, Rapid Learning or Feature Reuse? (ANIL)",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ANILConfig
    config: ANILConfig

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """One: an episode is a pass of the backbone, as for a metric learner."""
        del shape
        return 1

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ_head ← θ_head − α ∇L."""
        del number
        return {name: weight - self.config.inner_lr * gradients[name] for name, weight in weights.items()}

    def trajectory(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> Iterator[Weights]:
        """Yield the heads after each step, with the gradient of the support loss written out.

        With f the features and p the outputs' gradient (softmax less label, or twice the error), both over s examples:
        ∇W = pᵀ f / s, ∇b = Σ p / s.
        """
        features, _ = self.backbone.embed(dict(self.backbone.named_parameters()), x)
        features = features.to(x.dtype)
        if not differentiable:
            features = features.detach()
        weights: Weights = {
            name: value.expand(len(x), *value.shape)
            for name, value in ((HEAD_WEIGHT, self.head.weight), (HEAD_BIAS, self.head.bias))
        }
        with torch.autocast(x.device.type, enabled=False):
            for number in range(self.steps):
                outputs = linear(features, weights[HEAD_WEIGHT], weights[HEAD_BIAS])
                error = _output_gradient(outputs, y, present)
                gradients = {HEAD_WEIGHT: error.mT @ features, HEAD_BIAS: error.sum(dim=1)}
                weights = self.step(weights, gradients, number)
                yield weights

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,); they depend on the shared backbone not through the heads alone."""
        return query_outcome(self(episodes), episodes)


def _output_gradient(outputs: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """Return the gradient (b, s, way) of the mean loss of each support set with respect to its outputs."""
    if y.is_floating_point():
        return 2 * (outputs - y) / (outputs.shape[1] * outputs.shape[2])
    share = torch.softmax(outputs.masked_fill(~present.unsqueeze(1), -torch.inf), dim=-1)
    return (share - F.one_hot(y, outputs.shape[-1]).to(outputs.dtype)) / outputs.shape[1]
