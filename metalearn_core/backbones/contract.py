"""What every backbone is: a pure function from weights and examples to features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from metalearn_core.data.manifest import DatasetSpec

Weights = Mapping[str, Tensor]
Statistics = Mapping[str, Tensor]

MOMENTUM = 0.1


@torch.no_grad()
def move_averages(averages: Mapping[str, Tensor], statistics: Statistics) -> None:
    """Move running averages (channels,) towards the statistics of g groups (g, channels), each in turn, by MOMENTUM."""
    for name, average in averages.items():
        for value in statistics[name]:
            average.lerp_(value.to(average.dtype), MOMENTUM)


class BackboneConfig(BaseModel):
    """The options of a backbone; each one's own `Config` declares them, with defaults and descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tape(Protocol):
    """A forward pass that is remembered, of g groups of n examples; see `Backbone.tapes`.

    Attributes:
        features: (g, n, d).
    """

    features: Tensor

    def backward(self, gradient: Tensor) -> Weights:
        """Return the gradient with respect to every weight, from that with respect to the features (g, n, d)."""

    def forward_tangent(self, direction: Weights) -> Tensor:
        """Return the derivative of the features (g, n, d) as the weights move along `direction`; after `backward`."""

    def backward_tangent(self, gradient_tangent: Tensor, direction: Weights) -> Weights:
        """Return the derivative of `backward`'s gradient along `direction`, the features' gradient moving as given."""


TapeOf = Callable[[Weights, torch.dtype], Tape]
"""Gives the forward pass by weights, each with a leading dimension g, and by the type in which products of the tangents
may be computed; everything else is in the type of the examples."""


class Backbone(nn.Module, ABC):
    """A network whose forward pass takes its weights as an argument, so that tasks can have weights of their own.

    Its parameters are the shared (meta-)weights; its buffers, named like the statistics, the running statistics of
    its batch norms, which metric learners use when inductive.

    Args:
        spec: of the dataset whose examples it embeds.
        config: of the backbone's own `Config` type.

    Attributes:
        feature_size: d, the size of a feature vector.
        map_shape: (c, h, w) of the map that a feature vector is, flattened; None: it is a vector, and no map.
        taped: it has `tapes`, which are quicker than autograd for the gradient of a gradient.
        groups_together: groups are quicker at once than one after the other, on a CPU too: its operations are small.
        remembered: how many numbers a tape, or a pass where groups are together, remembers of each example.
    """

    groups_together: ClassVar[bool] = False
    Config: ClassVar[type[BackboneConfig]]
    modalities: ClassVar[tuple[str, ...]] = ("image", "vector")
    feature_size: int
    map_shape: tuple[int, int, int] | None = None
    taped: bool = False
    remembered: int = 0

    def __init__(self, spec: DatasetSpec, config: BackboneConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config

    @abstractmethod
    def embed_groups(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Do what `embed` says, for all groups at once."""

    def embed(
        self, weights: Weights, x: Tensor, statistics: Statistics | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Statistics]:
        """Embed g groups of n examples each; a group is what a batch norm takes its statistics over.

        On a CPU groups of images run one after the other: grouped convolutions are slower there than plain ones.

        Args:
            weights: by the names of `named_parameters()`. A weight may have a leading dimension g: each group its own.
            x: (g, n, *x) standardised examples.
            statistics: batch-norm statistics to use, each (g, channels) or (1, channels); None: those of each group
                of x itself.
            mask: (g, n) bool; what is masked out has no part in the statistics, and features of zero.

        Returns:
            features (g, n, d), and the statistics that were used: for each batch norm `<name>.mean` and `<name>.var`
            (biased), each (g, channels); differentiable.
        """
        groups = x.shape[0]
        if mask is not None:
            parts = [self._embed_kept(weights, x, statistics, group, keep) for group, keep in enumerate(mask)]
            return _joined(parts)
        if groups == 1:
            return self.embed_groups(weights, x, statistics)
        if statistics is not None and self._shared(weights) and all(len(value) == 1 for value in statistics.values()):
            features, _ = self.embed_groups(weights, x.flatten(0, 1).unsqueeze(0), statistics)
            used = {name: value.expand(groups, -1) for name, value in statistics.items()}
            return features.view(groups, -1, self.feature_size), used
        if x.device.type != "cpu" or self.groups_together:
            return self.embed_groups(weights, x, statistics)
        return _joined([self._embed_one(weights, x[group, None], statistics, group) for group in range(groups)])

    def tapes(self, x: Tensor) -> TapeOf:
        """Return what gives forward passes of g groups, each normalised by itself, with their derivatives by hand.

        What the examples alone decide is found once, however many passes there are.

        Args:
            x: (g, n, *x) standardised examples.

        Raises:
            NotImplementedError: the backbone is not `taped`: autograd differentiates `embed`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tapes")

    def running_statistics(self) -> Statistics:
        """Return the running statistics, each (1, channels)."""
        return {name: buffer.unsqueeze(0) for name, buffer in self.named_buffers()}

    def _shared(self, weights: Weights) -> bool:
        return all(weights[name].dim() == parameter.dim() for name, parameter in self.named_parameters())

    def _embed_one(
        self, weights: Weights, x: Tensor, statistics: Statistics | None, group: int
    ) -> tuple[Tensor, Statistics]:
        """Embed x (1, n, *x) as group number `group`."""
        own = {
            name: weights[name][group] if weights[name].dim() > parameter.dim() else weights[name]
            for name, parameter in self.named_parameters()
        }
        if statistics is not None:
            statistics = {n: value if len(value) == 1 else value[group, None] for n, value in statistics.items()}
        return self.embed_groups(own, x, statistics)

    def _embed_kept(
        self, weights: Weights, x: Tensor, statistics: Statistics | None, group: int, keep: Tensor
    ) -> tuple[Tensor, Statistics]:
        features, used = self._embed_one(weights, x[group, None, keep], statistics, group)
        rows = features.new_zeros(1, len(keep), features.shape[-1])
        return rows.masked_scatter(keep.unsqueeze(-1), features), used


def _joined(parts: Sequence[tuple[Tensor, Statistics]]) -> tuple[Tensor, Statistics]:
    used = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
    return torch.cat([part[0] for part in parts]), used
