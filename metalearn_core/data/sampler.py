"""Draws episodes: number i of a stream is always the same one, on every device and for every number of workers."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metalearn_core.data.counter import below, leading, order, shuffled, stream_key, subsets, words
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch, EpisodeIndex, EpisodeShape
from metalearn_core.data.manifest import Split
from metalearn_core.data.rotations import QUARTER_TURNS as QUARTER_TURNS  # noqa: PLC0414  (public here too)
from metalearn_core.data.varied import draw_counts, draw_ways
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
        within_domain: draw the classes of an episode from one domain, which is drawn first, each as often as another;
            a domain with fewer classes than the (least) way is left out.
        device: where indices are computed and pixels gathered.

    Attributes:
        left_out: domains that are left out.
        room: the shape, where it varies with no more than there is: what the tensors have room for.

    Raises:
        UsageError: the split (or domain) has fewer classes than way, or a class fewer examples than shot + query; where
            these vary, than the least of them.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        shape: EpisodeShape,
        *,
        seed: int,
        domain: str | None = None,
        within_domain: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        shape.require_classes()
        self.dataset, self.split, self.shape, self.domain = dataset, split, shape, domain
        self.device = torch.device(device)
        class_id, rotation = class_table(dataset, split, domain)
        self.left_out: tuple[str, ...] = ()
        group_size = torch.tensor([len(class_id)])
        if within_domain:
            class_id, rotation, group_size, self.left_out = _by_domain(dataset, split, shape, class_id, rotation)
        _check(dataset, split, shape, domain, class_id)
        self.class_id, self.rotation = class_id.to(self.device), rotation.to(self.device)
        self.turning = bool(rotation.any())
        self.offset = dataset.class_offset[class_id].to(self.device)
        self.count = dataset.class_count[class_id].to(self.device)
        self.group_size = group_size.to(self.device)
        self.group_start = self.group_size.cumsum(0) - self.group_size
        self.room = _capped(shape, int(group_size.max()), int(self.count.max()))
        spans = [shape.way, shape.shot, shape.query]
        if shape.varied:
            spans += [shape.least_way, shape.shot if shape.min_shot is None else shape.min_shot]
        parts = ["episodes", dataset.digest, split, spans, seed, domain]
        self.key = stream_key(*parts, *(["within domain"] if within_domain else []))
        self._drawn: tuple[int, EpisodeIndex] | None = None

    def index(self, first: int, count: int) -> EpisodeIndex:
        """Return which examples the episodes number first … first + count − 1 consist of."""
        way, shot, query = self.room.way, self.room.shot, self.room.query
        each = shot + query
        sizes = [way, way, way * each, way * each, way * shot, 3 + way]
        episode = words(self.key, torch.arange(first, first + count, device=self.device))
        word = words(episode.unsqueeze(1), torch.arange(sum(sizes), device=self.device))
        pick_class, order_class, pick_example, order_example, order_support, vary = torch.split(word, sizes, dim=1)
        group = below(vary[:, 0], len(self.group_size))
        population = self.group_size[group]
        ways = None if self.shape.min_way is None else draw_ways(vary[:, 1], self.shape, population)
        chosen = shuffled(subsets(pick_class, population, ways), order_class, ways)
        present = None
        if ways is not None:  # padding is the first class again
            present = leading(ways, way)
            chosen = torch.where(present, chosen, chosen[:, :1])
        chosen = chosen + self.group_start[group].unsqueeze(1)
        support_count, query_count = self._counts(vary[:, 2], vary[:, 3:], chosen, present)
        wanted = None if support_count is None or query_count is None else (support_count + query_count).clamp(min=1)
        examples = subsets(pick_example.reshape(count, way, each), self.count[chosen], wanted)
        examples = shuffled(examples, order_example.reshape(count, way, each), wanted)
        if support_count is None or query_count is None:
            support, queries = examples[..., :shot], examples[..., shot:]
        else:  # the queries behind the shots, however many these are; padding is the first example again
            place = torch.arange(query, device=self.device) + support_count.unsqueeze(-1)
            support = torch.where(leading(support_count, shot), examples[..., :shot], examples[..., :1])
            queries = examples.gather(-1, place.clamp(max=each - 1))
            queries = torch.where(leading(query_count, query), queries, examples[..., :1])
        offset = self.offset[chosen].unsqueeze(-1)
        return EpisodeIndex(
            class_id=self.class_id[chosen] if present is None else self.class_id[chosen].masked_fill(~present, -1),
            rotation=self.rotation[chosen],
            support_index=(support + offset).contiguous(),
            query_index=(queries + offset).contiguous(),
            support_order=self._support_order(order_support, support_count),
            support_count=support_count,
            query_count=query_count,
        )

    def _counts(
        self, size_word: Tensor, share_word: Tensor, chosen: Tensor, present: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the shots and the queries (b, way) of each class; None where they do not vary."""
        if not self.shape.varied:
            return None, None
        examples = self.count[chosen] if present is None else torch.where(present, self.count[chosen], 0)
        if self.shape.min_shot is None:
            return (self.shape.shot * (examples > 0), self.shape.query * (examples > 0))
        shots, queries = draw_counts(size_word, share_word, examples, self.shape)
        return shots, queries.unsqueeze(1) * (examples > 0)

    def _support_order(self, word: Tensor, support_count: Tensor | None) -> Tensor:
        if support_count is None:
            return order(word)
        chosen = leading(support_count, self.room.shot).flatten(1)
        return order(word, chosen)[:, : self.room.support_size].contiguous()

    def gather(self, index: EpisodeIndex) -> EpisodeBatch:
        """Return the pixels of episodes: support (b, s, *x) in its order, query (b, way·query, *x) by class."""
        support_place = index.support_order
        support_turns = query_turns = None
        if self.turning:
            support_turns = index.rotation.gather(1, support_place // index.support_index.shape[2])
            query_turns = index.rotation.repeat_interleave(index.query_index.shape[2], dim=1)
        return EpisodeBatch(
            way=self.room.way,
            support_x=self._pixels(index.support_index.flatten(1).gather(1, support_place), support_turns),
            support_y=index.support_y,
            query_x=self._pixels(index.query_index.flatten(1), query_turns),
            query_y=index.query_y,
            support_mask=index.support_mask,
            query_mask=index.query_mask,
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
    way, shot, query = shape.spans.values()
    if len(class_id) < shape.least_way:
        raise UsageError(
            f"way {way}: {where} has {len(class_id)} classes (rotations counted): lower way, "
            "or build the dataset with other ratios or more classes"
        )
    needed = shape.least_examples
    counts = dataset.class_count[class_id]
    if int(counts.min()) < needed:
        entry = dataset.manifest.classes[int(class_id[counts.argmin()])]
        queries = query if shape.min_shot is None else 1
        raise UsageError(
            f"class {entry.name!r} in {where} has {entry.count} examples, shot {shot} + query {queries} "
            f"need {needed}: lower shot or query, or build the dataset with min_examples {needed}"
        )


def _capped(shape: EpisodeShape, classes: int, examples: int) -> EpisodeShape:
    """Return a shape whose ranges end where the classes do, and the examples of the largest class."""
    if shape.min_way is not None:
        shape = replace(shape, way=min(shape.way, classes))
    if shape.min_shot is not None:
        shape = replace(shape, shot=min(shape.shot, examples - 1), query=min(shape.query, examples // 2))
    return shape


def no_domain_for(shape: EpisodeShape, split: Split, largest: int) -> UsageError:
    """Return the error for episodes within a domain where the largest has too few classes."""
    return UsageError(
        f"way {shape.spans['way']}: no domain of the {split} split has so many classes, the largest has {largest} "
        "(rotations counted): lower way, or draw episodes across domains"
    )


def _by_domain(
    dataset: EpisodeDataset, split: Split, shape: EpisodeShape, class_id: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Return the classes of a table domain by domain, how many each domain has, and the domains left out.

    Raises:
        UsageError: no domain has as many classes as the (least) way.
    """
    domains = [dataset.manifest.classes[number].domain for number in class_id.tolist()]
    size = Counter(domains)
    kept = sorted(name for name in size if size[name] >= shape.least_way)
    if not kept:
        raise no_domain_for(shape, split, max(size.values(), default=0))
    rows = sorted((row for row, name in enumerate(domains) if name in set(kept)), key=lambda row: domains[row])
    return (
        class_id[rows],
        rotation[rows],
        torch.tensor([size[name] for name in kept]),
        tuple(sorted(set(size) - set(kept))),
    )
