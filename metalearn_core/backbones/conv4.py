"""Four convolution blocks: the backbone of MAML (stride) and of Prototypical networks (max-pool) in their papers."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, BackboneConfig, Statistics, TapeOf, Weights
from metalearn_core.backbones.conv4_tape import Conv4Examples, Conv4Tape
from metalearn_core.backbones.functional import convolve_and_normalise, fold_groups, unfold_groups
from metalearn_core.backbones.layers import NormalisedConvolution
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError


class Conv4Config(BackboneConfig):
    """The options of conv4."""

    width: int = Field(64, ge=1, le=4096, description="channels of each block")
    blocks: int = Field(4, ge=1, le=12, description="convolution blocks")
    halvings: int | None = Field(
        None, ge=0, le=12, description="only the first so many blocks halve the image; none: all"
    )
    pooling: Literal["stride", "max"] = Field(
        "max", description="how a block halves: convolution of stride 2 (rounds up), or max-pooling (rounds down)"
    )
    gain: float = Field(
        2**0.5, gt=0, description="initial weights have a standard deviation of gain / √fan-in (√2: He et al. 2015)"
    )


class Conv4(Backbone):
    """Blocks of 3×3 convolution, batch norm, ReLU (and 2×2 max-pool); the feature vector is the flattened last map.

    Raises:
        UsageError: the examples are no images, or the image is too small for so many max-pools.
    """

    Config: ClassVar[type[BackboneConfig]] = Conv4Config
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    config: Conv4Config

    def __init__(self, spec: DatasetSpec, config: Conv4Config) -> None:
        super().__init__(spec, config)
        channels, height, width = spec.example_shape
        inputs = [channels] + [config.width] * (config.blocks - 1)
        self.halvings = config.blocks if config.halvings is None else min(config.blocks, config.halvings)
        self.taped = self.halvings == config.blocks  # the tape is of blocks that are all alike
        for _ in range(self.halvings):
            pixels = height * width
            height, width = (side // 2 if config.pooling == "max" else (side + 1) // 2 for side in (height, width))
            convolved = pixels if config.pooling == "max" else height * width
            self.remembered += 2 * convolved * config.width if self.taped else 0
        if min(height, width) < 1:
            raise UsageError(
                f"conv4.blocks: {self.halvings} halvings leave nothing of an image of {spec.example_shape[1]}×"
                f"{spec.example_shape[2]} pixels: use fewer blocks or halvings, larger images, or pooling=stride"
            )
        self.blocks = nn.ModuleList(NormalisedConvolution(size, config.width, config.gain) for size in inputs)
        self.map_shape = (config.width, height, width)
        self.feature_size = config.width * height * width

    def embed_groups(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Embed g groups at once; see `embed`."""
        groups = x.shape[0]
        used: dict[str, Tensor] = {}
        hidden = fold_groups(x)
        for number in range(len(self.blocks)):
            name = f"blocks.{number}"
            pooled = self.config.pooling == "max" and number < self.halvings
            stride = 2 if self.config.pooling == "stride" and number < self.halvings else 1
            examples = number == 0 and not x.requires_grad
            hidden, found = convolve_and_normalise(hidden, weights, name, statistics, groups, stride, examples=examples)
            used |= found
            # ReLU and max-pool commute, and a quarter of the map is quicker to rectify; nobody else needs the map.
            hidden = F.relu(F.max_pool2d(hidden, 2) if pooled else hidden, inplace=True)
        return unfold_groups(hidden, groups), used

    def tapes(self, x: Tensor) -> TapeOf:
        """Return what gives forward passes of groups x (g, n, c, h, w), with their derivatives by hand."""
        examples = Conv4Examples(x, self.config.pooling == "max")
        return lambda weights, tangent_precision: Conv4Tape(weights, examples, len(self.blocks), tangent_precision)
