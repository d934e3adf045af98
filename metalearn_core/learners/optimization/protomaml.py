"""Proto-MAML: MAML whose head starts as the classifier of Prototypical networks, for any number of classes."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, membership
from metalearn_core.learners.optimization.fast_weights import FastWeightConfig, FastWeightLearner, Weights
from metalearn_core.learners.optimization.inner_gradient import HEAD_BIAS, HEAD_WEIGHT


class ProtoMAMLConfig(FastWeightConfig):
    """The options of protomaml."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    inner_lr: float = Field(0.01, gt=0, description="α, the size of an inner step")
    first_order: bool = Field(False, description="leave out second derivatives: the outer gradient at θ′, taken as θ's")


class ProtoMAML(FastWeightLearner):
    """Proto-MAML (Triantafillou et al. 2020, section 3).

    −‖f − c‖² = 2 cᵀf − ‖c‖² − ‖f‖², whose last term is the same for each class: so Prototypical networks are a linear
    head with W = 2c and b = −‖c‖², c the mean feature of a class. MAML's inner steps go on from there, on head and
    backbone, and the outer gradient flows through the prototypes too.
    """

    info = LearnerInfo(
        name="protomaml",
        family="optimization",
        paper="Triantafillou et al. 2020, Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
        fixed_way=False,
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ProtoMAMLConfig
    config: ProtoMAMLConfig

    @property
    def first_order(self) -> bool:
        """As the option says."""
        return self.config.first_order

    def start(self, x: Tensor, y: Tensor, present: Tensor) -> Weights:
        """Return the shared backbone, and a head made of the prototypes under it."""
        members = membership(y, present.shape[1], None, x.dtype)
        features, _ = self.backbone.embed(dict(self.backbone.named_parameters()), x)
        prototypes = members.mT @ features.to(x.dtype) / members.sum(dim=1).clamp_min(1).unsqueeze(-1)
        head = {HEAD_WEIGHT: 2 * prototypes, HEAD_BIAS: -prototypes.square().sum(dim=-1)}
        return {**super().start(x, y, present), **head}

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ ← θ − α ∇L."""
        del number
        return {name: weight - self.config.inner_lr * gradients[name] for name, weight in weights.items()}
