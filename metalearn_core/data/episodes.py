"""Episodes as data: the examples that they consist of, and the pixels of those."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metalearn_core.data.counter import leading
from metalearn_core.data.shape import EpisodeShape as EpisodeShape  # noqa: PLC0414  (public here too)


@dataclass(frozen=True)
class EpisodeIndex:
    """Which examples b episodes consist of: their identity. All tensors are int64.

    Where way or shot varies, every episode has room for the most: the rest is padding, which repeats examples that
    the episode has.

    Attributes:
        class_id: (b, way) position in the dataset's list of classes; the label of a class is its column. −1: padding.
        rotation: (b, way) quarter turns counter-clockwise, 0 to 3, which make a further class of a class.
        support_index: (b, way, shot) rows of the dataset's example store.
        query_index: (b, way, query) rows of the dataset's example store.
        support_order: (b, s) the order in which the flattened support set is presented, padding last; s is way·shot,
            or less where no episode has as many.
        support_count: (b, way) shots of each class, the first ones of `support_index`; None: all of them.
        query_count: (b, way) queries of each class, likewise.
    """

    class_id: Tensor
    rotation: Tensor
    support_index: Tensor
    query_index: Tensor
    support_order: Tensor
    support_count: Tensor | None = None
    query_count: Tensor | None = None

    def __len__(self) -> int:
        return self.class_id.shape[0]

    def __getitem__(self, episodes: slice) -> "EpisodeIndex":
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[episodes] for name, value in values.items() if value is not None})

    @property
    def support_y(self) -> Tensor:
        """Labels (b, s) of the support set in its order; 0 where padded."""
        return _labels(self.support_order // self.support_index.shape[2], self.support_mask)

    @property
    def query_y(self) -> Tensor:
        """Labels (b, way·query) of the queries, class by class; 0 where padded."""
        _, way, query = self.query_index.shape
        columns = torch.arange(way, device=self.class_id.device).repeat_interleave(query).expand(len(self), -1)
        return _labels(columns.contiguous(), self.query_mask)

    @property
    def support_mask(self) -> Tensor | None:
        """Which of the support examples (b, s), in their order, are none of padding; None: all."""
        if self.support_count is None:
            return None
        return leading(self.support_count.sum(dim=1), self.support_order.shape[1])

    @property
    def query_mask(self) -> Tensor | None:
        """Which of the queries (b, way·query) are none of padding; None: all."""
        if self.query_count is None:
            return None
        return leading(self.query_count, self.query_index.shape[2]).flatten(1)

    @property
    def queries(self) -> Tensor:
        """Queries (b, way) of each class."""
        if self.query_count is not None:
            return self.query_count
        return torch.full_like(self.class_id, self.query_index.shape[2])


def _labels(columns: Tensor, mask: Tensor | None) -> Tensor:
    return columns if mask is None else columns.masked_fill(~mask, 0)


@dataclass(frozen=True)
class EpisodeBatch:
    """b episodes with their examples x, as learners take them.

    Attributes:
        way: classes per episode (where way varies: the largest).
        support_x: (b, s, *x) examples in the dataset's dtype.
        support_y: (b, s) int64 labels in 0 … way − 1; for regression (b, s, d) floats.
        query_x: (b, q, *x).
        query_y: (b, q), or (b, q, d).
        support_mask: (b, s) bool, False where padded; None where nothing is.
        query_mask: (b, q) bool, likewise.
    """

    way: int
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    support_mask: Tensor | None = None
    query_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name; masks that are None are none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "EpisodeBatch":
        """Return the same episodes with other tensors under these names."""
        values: dict[str, Any] = dict(tensors)
        return replace(self, **values)

    def to(self, device: torch.device) -> "EpisodeBatch":
        """Return the episodes on a device; from pinned memory they are copied while the processor goes on."""
        return self.with_tensors({n: value.to(device, non_blocking=True) for n, value in self.tensors().items()})

    def __getitem__(self, episodes: slice) -> "EpisodeBatch":
        return self.with_tensors({name: value[episodes] for name, value in self.tensors().items()})
