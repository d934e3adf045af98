"""MAML: meta-learn the weights from which a few gradient steps on a support set lead to a good classifier."""

from typing import ClassVar

from pydantic import Field

from metalearn_core.learners.contract import LearnerConfig, LearnerInfo
from metalearn_core.learners.optimization.fast_weights import Weights
from metalearn_core.learners.optimization.inner_loop import InnerLoopConfig, InnerLoopLearner


class MAMLConfig(InnerLoopConfig):
    """The options of maml.

    The paper's for Omniglot are learning rate 1e-3, α 0.4, meta-batch 32, and as many queries as shots. Ours give more
    accuracy on validation episodes, batch norm being inductive and the budget minutes. For sinusoids the paper's are an
    mlp with hidden=40,40, learning rate 1e-3 (schedule=constant), α 0.01, one inner step, meta-batch 25, 10 points and
    as many queries.
    """

    inner_lr: float = Field(0.1, gt=0, description="α, the size of an inner step")


class MAML(InnerLoopLearner):
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017), with a linear head on the backbone.

    θ′ᵢ = θ − α ∇θ L(θ; support set i), several times over (section 2.2, algorithm 1). The outer loss is
    L(θ′ᵢ; queries i), and its gradient flows through the inner steps. The paper is transductive.
    """

    info = LearnerInfo(
        name="maml",
        family="optimization",
        paper="Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = MAMLConfig
    config: MAMLConfig

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ ← θ − α ∇L."""
        del number
        return {name: weight.sub(gradients[name], alpha=self.config.inner_lr) for name, weight in weights.items()}
