"""What an episode dataset consists of, in numbers: a row a class and a row a split.

Values are read class by class; of ids and contents, which are compared across classes, all are in memory, some tens of
bytes for each example.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import SPLITS, ClassEntry, DatasetSpec, Split
from metalearn_core.data.shards import read_column

if TYPE_CHECKING:
    from pandas import DataFrame

    from metalearn_core.data.dataset import EpisodeDataset

_BYTES_A_TIME = 64 * 1024 * 1024
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DatasetTables:
    """Statistics of an episode dataset, as data frames.

    Attributes:
        classes: a row a class: name, domain, split; `count` of its examples, and the count `wanted`;
            `distinct` contents among them, and the `fewest_distinct` wanted; `repeated` ones beyond the first of each;
            `shared`: examples whose content another class has too; `leaked`: whose content a class of another split
            has; `constant`: pictures of a single value; `not_finite` values; `spread`: the largest value less the
            smallest; `largest` distance from the mean of the training split, in its standard deviations;
            `splits_of_name`, `splits_of_content`: in how many splits a class of this domain and name, or of this
            content, stands.
        splits: a row a split: `classes` (rotations counted) and those `wanted`; `domains`, `examples`, `smallest` and
            `largest` class, and their ratio `imbalance`.
        dataset: one row: `repeated_ids` beyond the first of each, and the share of `unreadable` files.
    """

    classes: "DataFrame"
    splits: "DataFrame"
    dataset: "DataFrame"


def dataset_tables(dataset: "EpisodeDataset", shapes: Mapping[Split, EpisodeShape]) -> DatasetTables:
    """Compute the statistics of a dataset, class by class.

    Args:
        dataset: the episode dataset.
        shapes: the episodes that are asked of each split; what is asked of none wants nothing.
    """
    import pandas as pd

    entries = dataset.manifest.classes
    classes = pd.DataFrame({
        "name": [entry.name for entry in entries],
        "domain": [entry.domain for entry in entries],
        "split": [entry.split for entry in entries],
        "count": [entry.count for entry in entries],
        "wanted": [_examples_wanted(shapes.get(entry.split)) for entry in entries],
        **_value_columns(dataset),
        **_content_columns(dataset),
        "splits_of_name": _splits_of(entries, [f"{entry.domain}\0{entry.name}" for entry in entries]),
        "splits_of_content": _splits_of(entries, [entry.digest for entry in entries]),
    })  # fmt: skip
    examples = int(classes["count"].sum())
    unreadable = len(dataset.manifest.unreadable)
    whole = pd.DataFrame({
        "dataset": [dataset.digest],
        "repeated_ids": [_repeated_ids(dataset)],
        "unreadable": [unreadable / max(1, unreadable + examples)],
    })  # fmt: skip
    return DatasetTables(classes, pd.DataFrame([_split_row(entries, split, shapes) for split in SPLITS]), whole)


def _examples_wanted(shape: EpisodeShape | None) -> int:
    return shape.least_examples if shape else 1


def _split_row(
    entries: tuple[ClassEntry, ...], split: Split, shapes: Mapping[Split, EpisodeShape]
) -> dict[str, str | int | float]:
    members = [entry for entry in entries if entry.split == split]
    counts = [entry.count for entry in members] or [0]
    return {
        "split": split,
        "classes": sum(len(entry.rotations) for entry in members),
        "wanted": shapes[split].least_way if split in shapes else 0,
        "domains": len({entry.domain for entry in members}),
        "examples": sum(counts),
        "smallest": min(counts),
        "largest": max(counts),
        "imbalance": max(counts) / max(1, min(counts)),
    }


def _splits_of(entries: tuple[ClassEntry, ...], keys: list[str]) -> list[int]:
    """Return for each class in how many splits its key stands."""
    splits: dict[str, set[str]] = {}
    for entry, key in zip(entries, keys, strict=True):
        splits.setdefault(key, set()).add(entry.split)
    return [len(splits[key]) for key in keys]


def _value_columns(dataset: "EpisodeDataset") -> dict[str, Any]:
    """Return for each class: constant examples, values that are not finite, the spread, and the largest distance."""
    rows = [_class_values(dataset, number) for number in range(len(dataset.manifest.classes))]
    names = ("constant", "not_finite", "spread", "largest")
    return {name: [row[name] for row in rows] for name in names}


def _class_values(dataset: "EpisodeDataset", number: int) -> dict[str, float]:
    constant, not_finite = 0, 0
    low, high, largest = np.inf, -np.inf, 0.0
    for rows in _rows(int(dataset.class_offset[number]), int(dataset.class_count[number]), dataset.spec):
        values = dataset.examples[rows].cpu().numpy()
        flat = values.reshape(len(values), -1)
        constant += int((flat.min(axis=1) == flat.max(axis=1)).sum())
        if values.dtype != np.uint8:
            finite = np.isfinite(flat)
            not_finite += int((~finite).sum())
            flat = np.where(finite, flat, 0)
            features = (-1,) + (1,) * (values.ndim - 2)
            mean, std = np.reshape(dataset.spec.mean, features), np.reshape(dataset.spec.std, features)
            distance = np.abs(flat.reshape(values.shape) - mean) / np.maximum(std, 1e-12)
            largest = max(largest, float(distance.max()))
        low, high = min(low, float(flat.min())), max(high, float(flat.max()))
    spread = high - low if high >= low else 0.0
    return {"constant": constant, "not_finite": not_finite, "spread": spread, "largest": largest}


def _rows(offset: int, count: int, spec: DatasetSpec) -> Iterator[slice]:
    """Yield the rows of a class in parts of at most 64 MiB."""
    size = int(np.prod(spec.example_shape)) * (1 if spec.dtype == "uint8" else 4)
    step = max(1, _BYTES_A_TIME // size)
    return (slice(first, min(first + step, offset + count)) for first in range(offset, offset + count, step))


def _content_columns(dataset: "EpisodeDataset") -> dict[str, Any]:
    """Return for each class: distinct contents, repeated ones, and examples that other classes or splits have too."""
    entries = dataset.manifest.classes
    content = _codes(dataset, "hash")
    class_of = np.repeat(np.arange(len(entries)), [entry.count for entry in entries])
    split_of = np.asarray([SPLITS.index(entry.split) for entry in entries])[class_of]
    count = np.bincount(class_of, minlength=len(entries))
    distinct = np.bincount(np.unique(np.stack([content, class_of]), axis=1)[1], minlength=len(entries))
    shared = _holders(content, class_of)[content] > 1
    leaked = _holders(content, split_of)[content] > 1
    return {
        "distinct": distinct,
        "fewest_distinct": np.minimum(count, 2),
        "repeated": count - distinct,
        "shared": np.bincount(class_of[shared], minlength=len(entries)),
        "leaked": np.bincount(class_of[leaked], minlength=len(entries)),
    }


def _holders(content: Integers, holder: Integers) -> Integers:
    """Return for each content code how many different holders (classes, splits) have it."""
    if not content.size:
        return np.zeros(0, np.int64)
    return np.bincount(np.unique(np.stack([content, holder]), axis=1)[0])


def _repeated_ids(dataset: "EpisodeDataset") -> int:
    codes = _codes(dataset, "id")
    return int(codes.size - np.unique(codes).size)


def _codes(dataset: "EpisodeDataset", column: Literal["id", "hash"]) -> Integers:
    """Return a number for each example, the same for those whose id or content is the same."""
    import pyarrow as pa

    parts = [pa.array(read_column(dataset.folder / shard.path, column)) for shard in dataset.manifest.shards]
    if not parts:
        return np.zeros(0, np.int64)
    codes: Integers = pa.concat_arrays(parts).dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes
