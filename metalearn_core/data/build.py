"""From a source to an episode dataset: decode on every core, split, find the rotations, write shards and manifest."""

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np

from metalearn_core.data import splits
from metalearn_core.data.build_folder import private_folder
from metalearn_core.data.decode import all_grey, decode_items
from metalearn_core.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    BuildOptions,
    ClassEntry,
    DatasetSpec,
    Manifest,
    Split,
    Unreadable,
    content_digest,
    read_manifest,
)
from metalearn_core.data.moments import merge
from metalearn_core.data.rotations import ClassMeans, distinct_rotations
from metalearn_core.data.shards import HASH_BYTES, ClassBlock, ShardWriter, examples_digest
from metalearn_core.data.sources.contract import Color, Item, Loader, Origin, Source, SourceClass
from metalearn_core.data.sources.open import open_source
from metalearn_core.data.splits import read_split_file
from metalearn_core.data.spool import ClassSpool, SpooledClass
from metalearn_core.data.workers import map_in_order
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.events import emit
from metalearn_core.resources import available_cores
from metalearn_core.storage import named_errors, write_json

__all__ = ["build_dataset", "read_split_file"]

DEFAULT_OPTIONS = BuildOptions()
CHUNK = 64
FEW = 500
_EVENT_SECONDS = 0.2


def build_dataset(
    source: str,
    out: Path,
    options: BuildOptions = DEFAULT_OPTIONS,
    *,
    workers: int | None = None,
    split_from: Path | None = None,
) -> Manifest:
    """Build the episode dataset of a source in the folder `out`: whole, or not at all.

    The digest depends on content and options only. Of the examples, no more than a few copies of the largest class are
    in memory at a time; their names and hashes all are, some hundred bytes for each. Where images may be turned, the
    time for finding the rotations grows with the square of the number of classes (`distinct_rotations`).

    Args:
        source: see `open_source`.
        out: a folder that does not exist yet, or is empty.
        options: what is wanted; the manifest has them with `auto` resolved.
        workers: decoding processes; by default one a core, and none where there are few examples.
        split_from: `manifest.json` (or the folder) of an earlier build, whose classes keep their splits.

    Raises:
        UsageError: an option is wrong, or does not fit the classes.
        MetalearnError: the source is missing, empty, of one class only, or unreadable for too large a share; or another
            build put another dataset at `out` meanwhile.
    """
    earlier = earlier_build(options, split_from)
    require_new_folder(out, source)
    opened = open_source(source)
    with named_errors(out), private_folder(out) as folder:
        manifest = _build(opened, folder, options, workers, earlier)
        write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
    return there_now(out, manifest)


def require_new_folder(out: Path, source: str = "") -> None:
    """Raise a UsageError where `out` is taken, cannot be replaced by a new folder, or lies within the source."""
    if out.is_mount():
        raise UsageError(f"{out}: is a mount point, which no folder can take the place of: choose a folder below it")
    if out.is_symlink() and not out.exists():
        raise UsageError(f"{out}: is a link that points to nothing: choose another folder, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already and not empty: choose another folder, or remove it")
    if source and Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(f"{out}: lies within the source: the next build would read it: choose another folder")


def there_now(out: Path, manifest: Manifest) -> Manifest:
    """Return the manifest at `out`, where another build may have been first with the same dataset.

    Raises:
        MetalearnError: it was first with another one.
    """
    there = read_manifest(out)
    if there.digest != manifest.digest:
        raise MetalearnError(
            f"{out}: another build put dataset {there.digest} there meanwhile, this one was to be {manifest.digest}: "
            "choose another folder"
        )
    emit("progress", "build", done=1.0, total=1.0, text=f"{len(there.classes)} classes")
    return there


def _build(
    opened: Source, folder: Path, options: BuildOptions, workers: int | None, earlier: Manifest | None
) -> Manifest:
    """Write the shards of a source's dataset into a folder; return the manifest."""
    scratch = folder / "scratch"
    scratch.mkdir()
    classes = sorted(opened.classes(scratch), key=lambda found: found.name)
    require_classes(opened.location, [found.name for found in classes])
    opened.bring(classes)
    if workers is None:
        workers = available_cores() if sum(len(found.items) for found in classes) >= FEW else 1
    options, loader = prepared(opened, classes, options, workers)
    with closing(opened), closing(ClassSpool(scratch)) as spool:
        unreadable = decode_classes(classes, loader, spool, workers)
        judge_unreadable(opened.location, unreadable, sum(len(found.items) for found in classes), options)
        manifest = commit_dataset(opened.origin, folder, spool, unreadable, options, earlier)
    shutil.rmtree(scratch)
    return manifest


def earlier_build(options: BuildOptions, split_from: Path | None) -> Manifest | None:
    """Return the manifest of an earlier build whose splits are kept, from its file or folder; None without one.

    Raises:
        UsageError: it is no manifest, or the options have a split file as well.
        MetalearnError: it is not there, or damaged.
    """
    if split_from is None:
        return None
    if options.split_file is not None:
        raise UsageError("split_file and split_from are both given: the splits come from one of the two")
    folder = split_from if split_from.is_dir() else split_from.parent
    if not split_from.is_dir() and split_from.name != MANIFEST_NAME:
        raise UsageError(f"split_from {split_from}: expected the {MANIFEST_NAME} of an episode dataset")
    return read_manifest(folder)


def require_classes(source: str, names: Sequence[str]) -> None:
    """Raise a MetalearnError where a source has one class only, or two of one name."""
    if len(names) == 1:
        raise MetalearnError(f"source {source!r}: one class only ({names[0]!r}), expected a folder for each of several")
    for one, other in itertools.pairwise(names):
        if one == other:
            raise MetalearnError(f"source {source!r}: two classes are named {one!r}")


def prepared(
    source: Source, classes: Sequence[SourceClass], options: BuildOptions, workers: int
) -> tuple[BuildOptions, Loader]:
    """Return the options, with the colour of images chosen, and what decodes a source's items by them."""
    color = _resolve_color(source, classes, options, workers)
    if source.modality == "image":
        options = options.model_copy(update={"color": color})
    return options, source.loader(options.image_size, color)


def _resolve_color(source: Source, classes: Sequence[SourceClass], options: BuildOptions, workers: int) -> Color:
    """Return the colour: where left open, grey if every image is; reading headers costs little beside decoding."""
    if options.color != "auto":
        return options.color
    is_grey = source.grey_test()
    if is_grey is None:
        return "grey"
    with closing(map_in_order(all_grey, ((is_grey, chunk) for chunk in _chunks(classes)), workers)) as answers:
        return "grey" if all(answers) else "rgb"


def decode_classes(classes: Sequence[SourceClass], loader: Loader, spool: ClassSpool, workers: int) -> list[Unreadable]:
    """Decode classes, one after the other, into the spool; return what could not be read, by path."""
    total = sum(len(found.items) for found in classes)
    unreadable: list[Unreadable] = []
    last_event = 0.0
    results = map_in_order(decode_items, ((loader, chunk) for chunk in _chunks(classes)), workers)
    done = 0
    for found in classes:
        parts = []
        expected = len(found.items)
        while expected:
            part = next(results)
            expected -= len(part.keys) + len(part.failures)
            done += len(part.keys) + len(part.failures)
            parts.append(part)
            unreadable += [Unreadable(path=key, reason=reason) for key, reason in part.failures]
            if time.monotonic() - last_event > _EVENT_SECONDS:
                last_event = time.monotonic()
                emit("progress", "build", done=0.9 * done / total, total=1.0, text=f"{done} of {total} examples")
        spool.add(found.name, found.domain, parts)
    for bad in unreadable:
        emit("warning", "build", text=f"{bad.path}: {bad.reason}: left out")
    return by_path(unreadable)


def by_path(unreadable: Iterable[Unreadable]) -> list[Unreadable]:
    """Return what could not be read in an order that does not depend on who found it."""
    return sorted(unreadable, key=lambda bad: (bad.path, bad.reason))


def _chunks(classes: Sequence[SourceClass]) -> Iterator[Sequence[Item]]:
    for found in classes:
        for start in range(0, len(found.items), CHUNK):
            yield found.items[start : start + CHUNK]


def judge_unreadable(location: str, unreadable: Sequence[Unreadable], total: int, options: BuildOptions) -> None:
    """Raise a MetalearnError where too large a share of a source's examples could not be read."""
    if len(unreadable) > options.max_unreadable * total:
        first = unreadable[0]
        raise MetalearnError(
            f"source {location!r}: {len(unreadable)} of {total} examples cannot be read, more than "
            f"max_unreadable {options.max_unreadable:g} allows; the first: {first.path}: {first.reason}"
        )


def commit_dataset(
    origin: Origin,
    folder: Path,
    spool: ClassSpool,
    unreadable: Sequence[Unreadable],
    options: BuildOptions,
    earlier: Manifest | None,
) -> Manifest:
    """Give the spooled classes their splits and rotations, and write the shards; return the manifest."""
    kept = [found for found in spool.classes if found.count >= options.min_examples]
    left_out = [found.name for found in spool.classes if found.count < options.min_examples]
    for name in left_out:
        emit("warning", "build", text=f"class {name}: fewer than {options.min_examples} examples: left out")
    if len(kept) < 2:
        raise MetalearnError(
            f"source {origin.location!r}: {len(kept)} of {len(spool.classes)} classes have at least "
            f"{options.min_examples} readable examples, expected two at least"
        )
    options, split_of = _splits(origin, kept, left_out, options, earlier)
    kept.sort(key=lambda found: (SPLITS.index(split_of[found.name]), found.name))
    rotations = _rotations(spool, kept, split_of, options)
    shape, dtype = spool.example_shape, spool.dtype
    writer = ShardWriter(folder, shape, dtype)
    entries = []
    try:
        for number, found in enumerate(kept):
            hashes = [whole[:HASH_BYTES] for whole in found.hashes]
            shard, row_group = writer.write(ClassBlock(number, found.keys, hashes, spool.examples(found)))
            entries.append(
                ClassEntry(
                    id=number,
                    name=found.name,
                    domain=found.domain,
                    split=split_of[found.name],
                    count=found.count,
                    shard=shard,
                    row_group=row_group,
                    rotations=rotations[number],
                    digest=examples_digest(found.hashes),
                )
            )
        shards = writer.close()
    finally:
        writer.abandon()
    spec = _spec(spool, kept, entries)
    return Manifest(
        digest=content_digest(spec, options, origin.rasteriser, entries),
        source=origin.location,
        rasteriser=origin.rasteriser,
        spec=spec,
        options=options,
        classes=tuple(entries),
        shards=shards,
        unreadable=tuple(unreadable),
        left_out=tuple(left_out),
    )


def _splits(
    origin: Origin,
    kept: Sequence[SpooledClass],
    left_out: Sequence[str],
    options: BuildOptions,
    earlier: Manifest | None,
) -> tuple[BuildOptions, dict[str, Split]]:
    """Return the options with `split_by` resolved, and each class's split."""
    names = [found.name for found in kept]
    if options.split_file is not None:
        rows = tuple(sorted(options.split_file))
        resolved = options.model_copy(update={"split_by": "class", "split_file": rows})
        assigned = splits.assign_from_file(names, [row for row in rows if row[0] not in left_out])
        return resolved, assigned
    domain_of = {found.name: found.domain for found in kept}
    default = earlier.options.split_by if earlier else origin.default_split_by
    split_by = splits.resolve_split_by(options.split_by, default, len(set(domain_of.values())))
    resolved = options.model_copy(update={"split_by": split_by})
    return resolved, splits.assign_splits(domain_of, options, split_by, _kept_splits(names, earlier))


def _kept_splits(names: Sequence[str], earlier: Manifest | None) -> dict[str, Split]:
    """Return the splits of those classes that an earlier build had too; what it had alone is said.

    Raises:
        UsageError: it had none of these classes: their names are others now, and test classes would be trained on.
    """
    if earlier is None:
        return {}
    found = {entry.name: entry.split for entry in earlier.classes}
    gone = sorted(found.keys() - set(names))
    if len(gone) == len(found):
        raise UsageError(
            f"split_from: none of the {len(found)} classes of dataset {earlier.digest} is in the source: they are "
            f"named like {gone[0]!r}, the source's like {min(names)!r}"
        )
    if gone:
        emit("warning", "build", text=f"split_from: {len(gone)} earlier classes are gone, the first is {gone[0]!r}")
    return {name: found[name] for name in names if name in found}


def _rotations(
    spool: ClassSpool, kept: Sequence[SpooledClass], split_of: Mapping[str, Split], options: BuildOptions
) -> list[tuple[int, ...]]:
    shape = spool.example_shape
    turning = len(shape) == 3 and shape[1] == shape[2] and options.rotations != "none"
    rotating = [turning and (options.rotations == "all" or split_of[found.name] == "train") for found in kept]
    if not any(rotating):
        return [(0,)] * len(kept)
    return distinct_rotations(ClassMeans(spool.means(kept), np.array([found.noise for found in kept])), rotating)


def _spec(spool: ClassSpool, kept: Sequence[SpooledClass], entries: Sequence[ClassEntry]) -> DatasetSpec:
    """Describe the dataset; mean and std are those of the training split (of everything, where that is empty)."""
    train = [found for found, entry in zip(kept, entries, strict=True) if entry.split == "train"] or list(kept)
    moments = merge(found.moments for found in train if found.moments is not None)
    dtype: Literal["uint8", "float32"] = spool.dtype
    return DatasetSpec(
        modality="image" if dtype == "uint8" else "vector",
        example_shape=spool.example_shape,
        dtype=dtype,
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.scale().tolist()),
        train_classes=sum(len(entry.rotations) for entry in entries if entry.split == "train"),
    )
