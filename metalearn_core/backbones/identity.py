"""No network at all: the example itself is its feature vector, for features that were computed elsewhere."""

import math
from typing import ClassVar

from torch import Tensor

from metalearn_core.backbones.contract import Backbone, BackboneConfig, Statistics, Weights
from metalearn_core.data.manifest import DatasetSpec


class IdentityConfig(BackboneConfig):
    """The options of identity: there are none."""


class Identity(Backbone):
    """The standardised example, flattened. It has no weights: what a learner learns besides the backbone is all."""

    Config: ClassVar[type[BackboneConfig]] = IdentityConfig
    groups_together = True

    def __init__(self, spec: DatasetSpec, config: BackboneConfig) -> None:
        super().__init__(spec, config)
        self.feature_size = self.remembered = math.prod(spec.example_shape)

    def embed_groups(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Return the examples x (g, n, *x) as vectors."""
        del weights, statistics
        return x.flatten(2), {}
