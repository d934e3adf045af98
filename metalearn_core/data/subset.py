"""An episode dataset without some of its classes."""

from collections.abc import Collection

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Split
from metalearn_core.storage import text_digest


def without_classes(dataset: EpisodeDataset, split: Split, digests: Collection[str]) -> EpisodeDataset:
    """Return the dataset without the classes of a split whose content hashes are among `digests`.

    The examples are shared, not copied; classes are numbered anew, and the dataset has a digest of its own, so that its
    episodes are others. Where nothing has to go, it is the dataset itself.
    """
    kept = [entry for entry in dataset.manifest.classes if entry.split != split or entry.digest not in digests]
    if len(kept) == len(dataset.manifest.classes):
        return dataset
    gone = sorted(entry.digest for entry in dataset.manifest.of_split(split) if entry.digest in digests)
    manifest = dataset.manifest.model_copy(
        update={
            "classes": tuple(entry.model_copy(update={"id": number}) for number, entry in enumerate(kept)),
            "digest": text_digest({"dataset": dataset.digest, "without": gone})[:32],
        }
    )
    subset = EpisodeDataset(dataset.folder, manifest, dataset.examples)
    subset.class_offset = dataset.class_offset[[entry.id for entry in kept]]
    return subset
