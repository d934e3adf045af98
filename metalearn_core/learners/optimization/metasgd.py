"""Meta-SGD: meta-learn the weights, and for each of them the size and sign of its step."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner, Weights


class MetaSGDConfig(FastWeightConfig):
    """The options of metasgd."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    inner_lr: float = Field(
        0.1, description="what every element of α starts from (the paper draws each one from 0.005 to 0.1)"
    )
    eval_steps: int = Field(1, ge=1, le=1000, description="inner steps in evaluation and prediction")


class MetaSGD(FastWeightLearner):
    """Meta-SGD (Li, Zhou, Chen, Li 2017), with a linear head on the backbone.

    θ′ = θ − α ∘ ∇L(θ; support set) (equation 2), with α of the size of θ and learnt with it by the outer loss
    (algorithm 1). One step, as in the paper; several use the same α.
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
        self.rates = nn.ParameterList(value.new_full(value.shape, config.inner_lr) for value in self.shared().values())

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ ← θ − α ∘ ∇L."""
        del number
        rates = dict(zip(self.shared(), self.rates, strict=True))
        return {name: weight - rates[name] * gradients[name] for name, weight in weights.items()}
