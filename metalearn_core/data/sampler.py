"""Draws episodes: number i of a stream is always the same one, on every device and for every number of workers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn_core.data.counter import shuffled, stream_key, subsets, words
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch, EpisodeIndex, EpisodeShape
from metalearn_core.data.manifest import Split
from metalearn_core.data.rotations import QUARTER_TURNS as QUARTER_TURNS  # noqa: PLC0414  (public here too)
from metalearn_core.errors import UsageError, unknown

DRAWN_AT_ONCE = 32


def class_table(dataset: EpisodeDataset, split: Split, domain: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the pairs (class, rotation) that count as classes of a split, or of one domain in it.

    Returns:
        class_id (m,) and rotation (m,) int64, in the order of the manifest.

    Raises:
        UsageError: the split has no such domain.
    """
    entries = dataset.manifest.of_split(split)
    if domain is not None:
        domains = {entry.domain for entry in entries}
        if domain not in domains:
            raise unknown(f"domain in the {split} split", domain, domains)
        entries = tuple(entry for entry in entries if entry.domain == domain)
    pairs = [(entry.id, rotation) for entry in entries for rotation in entry.rotations]
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return table[:, 0].contiguous(), table[:, 1].contiguous()


def rotate(x: Tensor, quarter_turns: Tensor) -> Tensor:
    """Return images (…, c, h, w), h = w, turned counter-clockwise by quarter_turns (broadcast to …), 0 to 3 each."""
    leading = x.shape[:-3]
    turns = quarter_turns.to(x.device).expand(leading).reshape(-1)
    turned = x.reshape(-1, *x.shape[-3:]).clone()
    for turn in range(1, QUARTER_TURNS):
        chosen = (turns == turn).nonzero().squeeze(1)
        if len(chosen):
            turned[chosen] = torch.rot90(turned[chosen], turn, (-2, -1))
    return turned.view(x.shape)


class EpisodeSampler:
    """Episodes of one shape from one split; episode i depends on the dataset, split, shape, seed, domain and i alone.

    Args:
        dataset: where the examples are.
        split: whose classes are drawn.
        shape: of the episodes.
        seed: of the stream.
        domain: draw only classes of this domain.
        device: where indices are computed and pixels gathered.

    Raises:
        UsageError: the split (or domain) has fewer classes than way, or a class fewer examples than shot + query.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        shape: EpisodeShape,
        *,
        seed: int,
        domain: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.dataset, self.split, self.shape, self.domain = dataset, split, shape, domain
        self.device = torch.device(device)
        class_id, rotation = class_table(dataset, split, domain)
        _check(dataset, split, shape, domain, class_id)
        self.class_id, self.rotation = class_id.to(self.device), rotation.to(self.device)
        self.turning = bool(rotation.any())
        self.offset = dataset.class_offset[class_id].to(self.device)
        self.count = dataset.class_count[class_id].to(self.device)
        self.key = stream_key("episodes", dataset.digest, split, [shape.way, shape.shot, shape.query], seed, domain)
        self._drawn: tuple[int, EpisodeIndex] | None = None

    def index(self, first: int, count: int) -> EpisodeIndex:
        """Return which examples the episodes number first … first + count − 1 consist of."""
        way, shot, query = self.shape.way, self.shape.shot, self.shape.query
        each = shot + query
        sizes = [way, way, way * each, way * each, way * shot]
        episode = words(self.key, torch.arange(first, first + count, device=self.device))
        word = words(episode.unsqueeze(1), torch.arange(sum(sizes), device=self.device))
        pick_class, order_class, pick_example, order_example, order_support = torch.split(word, sizes, dim=1)
        population = torch.full((count,), len(self.class_id), dtype=torch.int64, device=self.device)
        chosen = shuffled(subsets(pick_class, population), order_class)
        examples = subsets(pick_example.reshape(count, way, each), self.count[chosen])
        examples = shuffled(examples, order_example.reshape(count, way, each)) + self.offset[chosen].unsqueeze(-1)
        return EpisodeIndex(
            class_id=self.class_id[chosen],
            rotation=self.rotation[chosen],
            support_index=examples[..., :shot].contiguous(),
            query_index=examples[..., shot:].contiguous(),
            support_order=order_support.argsort(dim=-1, stable=True),
        )

    def gather(self, index: EpisodeIndex) -> EpisodeBatch:
        """Return the pixels of episodes: support (b, way·shot, *x) in its order, query (b, way·query, *x) by class."""
        way, shot, query = self.shape.way, self.shape.shot, self.shape.query
        order = index.support_order
        turns = index.rotation if self.turning else None
        support_class = order // shot
        support_rows = index.support_index.flatten(1).gather(1, order)
        query_class = torch.arange(way, device=self.device).repeat_interleave(query).expand(len(index), -1)
        return EpisodeBatch(
            way=way,
            support_x=self._pixels(support_rows, None if turns is None else turns.gather(1, support_class)),
            support_y=support_class,
            query_x=self._pixels(index.query_index.flatten(1), None if turns is None else turns.gather(1, query_class)),
            query_y=query_class.contiguous(),
        )

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return the episodes number first … first + count − 1; drawing many indices costs hardly more than a few."""
        drawn = self._drawn
        if drawn is None or not drawn[0] <= first <= first + count <= drawn[0] + len(drawn[1]):
            self._drawn = drawn = first, self.index(first, max(count, DRAWN_AT_ONCE))
        start = first - drawn[0]
        return self.gather(drawn[1][start : start + count])

    def _pixels(self, rows: Tensor, turns: Tensor | None) -> Tensor:
        return _gather(self.dataset, self.device, rows, turns)


def gather_examples(examples: Tensor, rows: Tensor, turns: Tensor | None) -> Tensor:
    """Return the examples (…, *x) at rows (…) of a store (N, *x), each turned by its quarter turns (…)."""
    x = examples.index_select(0, rows.reshape(-1)).view(*rows.shape, *examples.shape[1:])
    return x if turns is None else rotate(x, turns)


def _gather(dataset: EpisodeDataset, device: torch.device, rows: Tensor, turns: Tensor | None) -> Tensor:
    """Return what `gather_examples` does, from the store of turned examples where there is one."""
    turned = None if turns is None else dataset.turned_on(device)
    if turns is None or turned is None:
        return gather_examples(dataset.on(device), rows, turns)
    return gather_examples(turned, turns * (len(turned) // QUARTER_TURNS) + rows, None)


@dataclass(frozen=True)
class _Epoch:
    number: int
    order: Tensor


class ExampleSampler:
    """Plain examples of a split with global labels, epoch by epoch; batch n depends on the stream and n alone.

    The labels count the pairs (class, rotation) of the split in the order of the manifest. An epoch shows every example
    of every pair once; a batch may reach into the next one.

    Raises:
        UsageError: the split is empty, or the batch size below 1.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        *,
        seed: int,
        batch_size: int,
        device: str | torch.device = "cpu",
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        class_id, rotation = class_table(dataset, split)
        if not len(class_id):
            raise UsageError(f"the {split} split of the dataset is empty")
        count = dataset.class_count[class_id]
        self.ends = count.cumsum(0).to(self.device)
        self.start = self.ends - count.to(self.device)
        self.offset, self.rotation = dataset.class_offset[class_id].to(self.device), rotation.to(self.device)
        self.turning = bool(rotation.any())
        self.examples = int(count.sum())
        self.key = stream_key("examples", dataset.digest, split, seed)
        self._epoch = _Epoch(-1, torch.empty(0))

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return examples x (n, *x) and labels y (n,) int64 of batch `number`."""
        position, left = number * self.batch_size, self.batch_size
        parts = []
        while left:
            epoch, start = divmod(position, self.examples)
            parts.append(self._order(epoch)[start : start + left])
            position += len(parts[-1])
            left -= len(parts[-1])
        chosen = torch.cat(parts)
        label = torch.searchsorted(self.ends, chosen, right=True)
        rows = self.offset[label] + chosen - self.start[label]
        turns = self.rotation[label] if self.turning else None
        return _gather(self.dataset, self.device, rows, turns), label

    def _order(self, epoch: int) -> Tensor:
        if self._epoch.number != epoch:
            key = words(self.key, torch.tensor(epoch, device=self.device))
            keys = words(key, torch.arange(self.examples, device=self.device))
            self._epoch = _Epoch(epoch, keys.argsort(stable=True))
        return self._epoch.order


def _check(dataset: EpisodeDataset, split: Split, shape: EpisodeShape, domain: str | None, class_id: Tensor) -> None:
    """Compare what an episode needs with what there is."""
    where = f"the {split} split" if domain is None else f"domain {domain!r} of the {split} split"
    if len(class_id) < shape.way:
        raise UsageError(
            f"way {shape.way}: {where} has {len(class_id)} classes (rotations counted): lower way, "
            "or build the dataset with other ratios or more classes"
        )
    needed = shape.shot + shape.query
    counts = dataset.class_count[class_id]
    if int(counts.min()) < needed:
        entry = dataset.manifest.classes[int(class_id[counts.argmin()])]
        raise UsageError(
            f"class {entry.name!r} in {where} has {entry.count} examples, shot {shape.shot} + query {shape.query} "
            f"need {needed}: lower shot or query, or build the dataset with min_examples {needed}"
        )
