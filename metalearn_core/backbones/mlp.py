"""A multilayer perceptron, for feature vectors and for images taken as vectors."""

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, BackboneConfig, Statistics, Weights
from metalearn_core.backbones.functional import linear
from metalearn_core.backbones.options import split_numbers
from metalearn_core.data.manifest import DatasetSpec


class MLPConfig(BackboneConfig):
    """The options of mlp."""

    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65536)], ...], BeforeValidator(split_numbers), Field(min_length=1)
    ] = Field((64, 64), description="sizes of the layers, for example 64,64; the last is the feature vector's")


class _Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        # Of a single number x, units without biases make nothing but multiples of x and |x|.
        nn.init.uniform_(self.bias, -(inputs**-0.5), inputs**-0.5)


class MLP(Backbone):
    """Linear layers, each followed by a ReLU. It has no batch norm, so both batch-norm modes are the same."""

    Config: ClassVar[type[BackboneConfig]] = MLPConfig
    groups_together = True
    config: MLPConfig

    def __init__(self, spec: DatasetSpec, config: MLPConfig) -> None:
        super().__init__(spec, config)
        sizes = (math.prod(spec.example_shape), *config.hidden)
        self.layers = nn.ModuleList(_Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))
        self.feature_size = sizes[-1]
        self.remembered = sum(sizes)

    def embed_groups(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Embed g groups at once; see `embed`."""
        del statistics
        hidden = x.flatten(2)
        for number in range(len(self.layers)):
            hidden = F.relu(linear(hidden, weights[f"layers.{number}.weight"], weights[f"layers.{number}.bias"]))
        return hidden, {}
