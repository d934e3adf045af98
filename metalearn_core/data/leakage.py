"""Whether a model is tested on what it was trained on: classes and images, found again by their content."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.manifest import ClassEntry, Record, Split
from metalearn_core.data.rotations import QUARTER_TURNS

SHOWN_EXAMPLES = 5


class Leakage(Record):
    """What of a split one or several models have seen in training.

    Attributes:
        split: whose classes were looked at.
        examples: how many were looked at.
        known: distinct training examples of the models that they were compared with; 0: the models do not say.
        duplicates: examples of the split that are a training example, as they are or turned by quarter turns.
        turned: those of them that are one only when turned.
        shown: some of the duplicates, by the source's key, with the turn.
        class_names: of the classes that hold duplicates or were trained on whole; they are left out.
        class_digests: their content hashes.
    """

    split: Split
    examples: int
    known: int
    duplicates: int
    turned: int
    shown: tuple[str, ...]
    class_names: tuple[str, ...]
    class_digests: tuple[str, ...]

    @property
    def finding(self) -> str:
        """What was found, in one line."""
        if not self.known and not self.class_names:
            return f"leakage: no training class among the {self.split} classes; images unknown to the model's bundle"
        if not self.class_names:
            return (
                f"leakage: none of {self.examples:,} {self.split} examples is among {self.known:,} training examples, "
                "turned or not"
            )
        found = f"{self.duplicates:,} of {self.examples:,} {self.split} examples were trained on"
        turned = f" ({self.turned:,} of them turned)" if self.turned else ""
        named = f", as {', '.join(self.shown)}" if self.shown else ""
        classes = f"{len(self.class_names):,} {'class is' if len(self.class_names) == 1 else 'classes are'} left out"
        return f"leakage: {found}{turned}{named}: {classes}"


def check_leakage(dataset: EpisodeDataset, split: Split, digests: Collection[str], known: NDArray[np.int64]) -> Leakage:
    """Return what of a split models have seen: whole classes, and single examples, of images also in quarter turns.

    A class that gained or lost a picture since the training is another by its own hash, and is known by the others.

    Args:
        dataset: with the split.
        split: whose classes are looked at.
        digests: content hashes of the classes that the models were trained on (`ClassEntry.digest`).
        known: (n,) `fingerprints` of the examples that they were trained on.
    """
    entries = dataset.manifest.of_split(split)
    whole = np.array([entry.digest in digests for entry in entries], dtype=bool)
    turns = _turns(dataset, entries, known)
    holder = np.repeat(np.arange(len(entries)), [entry.count for entry in entries])
    found = np.flatnonzero(turns >= 0)
    seen = whole.copy()
    seen[holder[found]] = True
    rows = np.concatenate([_rows(dataset, entry) for entry in entries]) if entries else found
    shown = found[:SHOWN_EXAMPLES]
    keys = dataset.example_ids(rows[shown].tolist()) if len(shown) else []
    return Leakage(
        split=split,
        examples=len(turns),
        known=len(np.unique(known)),
        duplicates=len(found),
        turned=int((turns > 0).sum()),
        shown=tuple(
            f"{key} (turned {90 * turn}°)" if turn else key
            for key, turn in zip(keys, turns[shown].tolist(), strict=True)
        ),
        class_names=tuple(entry.name for entry, is_seen in zip(entries, seen, strict=True) if is_seen),
        class_digests=tuple(entry.digest for entry, is_seen in zip(entries, seen, strict=True) if is_seen),
    )


def _turns(dataset: EpisodeDataset, entries: Sequence[ClassEntry], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each example the least number of quarter turns that make it a known one; −1: none does."""
    found = np.full(sum(entry.count for entry in entries), -1, np.int64)
    if not len(known) or not len(found):
        return found
    turns = range(QUARTER_TURNS if dataset.spec.modality == "image" else 1)
    hashes = np.concatenate([_hashes(dataset, entry, turns) for entry in entries], axis=1)
    for turn in reversed(turns):
        found[np.isin(hashes[turn], known)] = turn
    return found


def _hashes(dataset: EpisodeDataset, entry: ClassEntry, turns: range) -> NDArray[np.int64]:
    """Return the fingerprints (turns, count) of a class's examples in each turn."""
    first = int(dataset.class_offset[entry.id])
    values = dataset.examples[first : first + entry.count].numpy()
    turned = (np.ascontiguousarray(np.rot90(values, turn, axes=(-2, -1)) if turn else values) for turn in turns)
    return np.stack([fingerprints(hashlib.sha256(example).digest() for example in one) for one in turned])


def _rows(dataset: EpisodeDataset, entry: ClassEntry) -> NDArray[np.int64]:
    return int(dataset.class_offset[entry.id]) + np.arange(entry.count)
