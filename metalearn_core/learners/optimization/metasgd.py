"""Meta-SGD: meta-learn the weights, and for each of them the size and sign of its step."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo
from metalearn_core.learners.optimization.fast_weights import Weights
from metalearn_core.learners.optimization.inner_loop import InnerLoopConfig, InnerLoopLearner

FIRST_RATES = (0.005, 0.1)


class MetaSGDConfig(InnerLoopConfig):
    """The options of metasgd."""

    inner_lr: float | None = Field(
        None, gt=0, description="what every element of α starts from; none: one number from 0.005 to 0.1, by the seed"
    )
    eval_steps: int = Field(1, ge=1, le=1000, description="inner steps in evaluation and prediction")


class MetaSGD(InnerLoopLearner):
    """Meta-SGD (Li, Zhou, Chen, Li 2017), with a linear head on the backbone.

    θ′ = θ − α ∘ ∇L(θ; support set) (equation 2), with α of the size of θ and learnt with it by the outer loss
    (algorithm 1). One step, as in the paper; several use the same α. An element of α may become negative: α ∘ ∇L is a
    direction of its own.
    """

    info = LearnerInfo(
        name="metasgd",
        family="optimization",
        paper="Li, Zhou, Chen, Li 2017, Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = MetaSGDConfig
    config: MetaSGDConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: MetaSGDConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        low, high = FIRST_RATES
        first = low + (high - low) * torch.rand(()).item() if config.inner_lr is None else config.inner_lr
        self.rates = nn.ParameterList(value.new_full(value.shape, first) for value in self.shared().values())

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ ← θ − α ∘ ∇L."""
        del number
        rates = dict(zip(self.shared(), self.rates, strict=True))
        return {name: weight - rates[name] * gradients[name] for name, weight in weights.items()}
