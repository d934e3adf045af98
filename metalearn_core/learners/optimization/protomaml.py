"""Proto-MAML: MAML whose head starts as the classifier of Prototypical networks, for any number of classes."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.learners.contract import LearnerConfig, LearnerInfo
from metalearn_core.learners.embedding import class_means, membership
from metalearn_core.learners.optimization.fast_weights import Weights
from metalearn_core.learners.optimization.inner_gradient import HEAD_BIAS, HEAD_WEIGHT
from metalearn_core.learners.optimization.maml import MAML, MAMLConfig


class ProtoMAMLConfig(MAMLConfig):
    """The options of protomaml."""

    inner_lr: float = Field(0.01, gt=0, description="α, the size of an inner step")


class ProtoMAML(MAML):
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

    def start(self, x: Tensor, y: Tensor, present: Tensor) -> Weights:
        """Return the shared backbone, and a head made of the prototypes under it; a class without support has none."""
        members = membership(y, present.shape[1], None, x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            features, _ = self.backbone.embed(dict(self.backbone.named_parameters()), x)
            prototypes, _ = class_means(features, members)
        head = {HEAD_WEIGHT: 2 * prototypes, HEAD_BIAS: -prototypes.square().sum(dim=-1)}
        return {**super().start(x, y, present), **head}
