"""An episode dataset with some of its classes: without those that a model has seen, or those of one domain alone."""

from collections.abc import Collection, Sequence
from typing import Any

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import ClassEntry, Split
from metalearn_core.errors import unknown
from metalearn_core.storage import text_digest


def split_hashes(dataset: EpisodeDataset, split: Split) -> list[bytes]:
    """Return the content hashes of all examples of a split, class after class: what a model trained on it has seen."""
    return dataset.example_hashes(_rows(dataset, dataset.manifest.of_split(split)))


def class_sketches(dataset: EpisodeDataset, split: Split) -> list[str]:
    """Return for each class of a split what is likely to stay when pictures are added to it or taken away.

    It is the smallest content hash of its examples: one picture more in a class of n changes it once in n + 1 times.
    """
    entries = dataset.manifest.of_split(split)
    hashes = iter(dataset.example_hashes(_rows(dataset, entries)))
    return [min(next(hashes) for _ in range(entry.count)).hex() for entry in entries]


def without_classes(dataset: EpisodeDataset, split: Split, digests: Collection[str]) -> EpisodeDataset:
    """Return the dataset without the classes of a split whose content hashes are among `digests`.

    The examples are shared, not copied; classes are numbered anew, and the dataset has a digest of its own, so that its
    episodes are others. Where nothing has to go, it is the dataset itself.
    """
    kept = [entry for entry in dataset.manifest.classes if entry.split != split or entry.digest not in digests]
    if len(kept) == len(dataset.manifest.classes):
        return dataset
    gone = sorted(entry.digest for entry in dataset.manifest.of_split(split) if entry.digest in digests)
    return _subset(dataset, kept, {"dataset": dataset.digest, "without": gone})


def only_domain(dataset: EpisodeDataset, domain: str) -> EpisodeDataset:
    """Return the dataset with the classes of one domain alone, each in the split that it is in.

    As `without_classes`, it shares the examples. Examples are standardised as in the whole dataset.

    Raises:
        UsageError: there is no such domain.
    """
    entries = dataset.manifest.classes
    kept = [entry for entry in entries if entry.domain == domain]
    if not kept:
        raise unknown("domain", domain, {entry.domain for entry in entries})
    return _subset(dataset, kept, {"dataset": dataset.digest, "domain": domain})


def _subset(dataset: EpisodeDataset, kept: Sequence[ClassEntry], name: dict[str, Any]) -> EpisodeDataset:
    """Return the dataset with these of its classes; its digest is that of its name."""
    spec = dataset.spec
    if spec.target_size is None:
        trained = sum(len(entry.rotations) for entry in kept if entry.split == "train")
        spec = spec.model_copy(update={"train_classes": trained})
    manifest = dataset.manifest.model_copy(
        update={
            "classes": tuple(entry.model_copy(update={"id": number}) for number, entry in enumerate(kept)),
            "spec": spec,
            "digest": text_digest(name)[:32],
        }
    )
    subset = EpisodeDataset(dataset.folder, manifest, dataset.examples, mapped=dataset.mapped)
    subset.class_offset = dataset.class_offset[[entry.id for entry in kept]]
    return subset


def _rows(dataset: EpisodeDataset, entries: Sequence[ClassEntry]) -> list[int]:
    """Return the rows of the examples of some classes, class after class."""
    offsets = dataset.class_offset.tolist()
    return [row for entry in entries for row in range(offsets[entry.id], offsets[entry.id] + entry.count)]
