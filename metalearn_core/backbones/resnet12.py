"""Four residual blocks of three convolutions: the backbone of TADAM and MetaOptNet, for larger pictures."""

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, BackboneConfig, Statistics, Weights
from metalearn_core.backbones.functional import convolve_and_normalise, fold_groups
from metalearn_core.backbones.layers import NormalisedConvolution
from metalearn_core.backbones.options import split_numbers
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError

BLOCKS, CONVOLUTIONS = 4, 3
SLOPE = 0.1


class ResNet12Config(BackboneConfig):
    """The options of resnet12."""

    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        BeforeValidator(split_numbers),
        Field(min_length=BLOCKS, max_length=BLOCKS),
    ] = Field(
        (64, 160, 320, 640),
        description="channels of the four blocks: 64,160,320,640 (Lee et al. 2019) or 64,128,256,512 (Oreshkin 2018)",
    )
    gain: float = Field(
        2**0.5, gt=0, description="initial weights have a standard deviation of gain / √fan-in (√2: He et al. 2015)"
    )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        sizes = (inputs, *(outputs,) * CONVOLUTIONS)
        self.layers = nn.ModuleList(NormalisedConvolution(one, other, gain) for one, other in pairwise(sizes))
        self.shortcut = NormalisedConvolution(inputs, outputs, gain, kernel=1)


class ResNet12(Backbone):
    """ResNet-12 (Oreshkin et al. 2018, TADAM; Lee et al. 2019, MetaOptNet), without dropout: it draws no numbers.

    A block is three 3×3 convolutions, each with batch norm, the first two with leaky ReLU (0.1); a 1×1 convolution with
    batch norm of the block's input is added, then come leaky ReLU and 2×2 max-pool. The feature vector is the mean over
    the pixels of the last map.

    Raises:
        UsageError: the examples are no images, or the image is too small for four max-pools.
    """

    Config: ClassVar[type[BackboneConfig]] = ResNet12Config
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    config: ResNet12Config

    def __init__(self, spec: DatasetSpec, config: ResNet12Config) -> None:
        super().__init__(spec, config)
        channels, height, width = spec.example_shape
        if min(height, width) < 2**BLOCKS:
            raise UsageError(
                f"resnet12: {BLOCKS} max-pools leave nothing of an image of {height}×{width} pixels: it takes images "
                f"of {2**BLOCKS}×{2**BLOCKS} or more; for smaller ones take conv4 with pooling=stride"
            )
        self.blocks = nn.ModuleList(
            _Block(inputs, outputs, config.gain) for inputs, outputs in pairwise((channels, *config.widths))
        )
        self.feature_size = config.widths[-1]

    def embed_groups(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Embed g groups at once; see `embed`."""
        groups = x.shape[0]
        used: dict[str, Tensor] = {}

        def layer(hidden: Tensor, name: str) -> Tensor:
            examples = hidden is pixels and not x.requires_grad
            hidden, found = convolve_and_normalise(hidden, weights, name, statistics, groups, examples=examples)
            used.update(found)
            return hidden

        hidden = pixels = fold_groups(x)
        for number in range(BLOCKS):
            block, residual = f"blocks.{number}", hidden
            for position in range(CONVOLUTIONS):
                residual = layer(residual, f"{block}.layers.{position}")
                if position < CONVOLUTIONS - 1:
                    residual = F.leaky_relu(residual, SLOPE)
            total = residual + layer(hidden, f"{block}.shortcut")
            # As in conv4, the quarter of the map that max-pool leaves is quicker to rectify.
            hidden = F.leaky_relu(F.max_pool2d(total, 2), SLOPE)
        features = hidden.mean(dim=(2, 3)).view(x.shape[1], groups, -1)
        return features.transpose(0, 1), used
