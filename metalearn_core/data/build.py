"""From a source to an episode dataset: decode on every core, split, find the rotations, write shards and manifest."""

import itertools
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from metalearn_core.cores import available_cores
from metalearn_core.data import splits
from metalearn_core.data.build_folder import private_folder
from metalearn_core.data.decode import decode_items
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
from metalearn_core.data.sources import open_source
from metalearn_core.data.sources.contract import Color, Item, Loader, Source, SourceClass
from metalearn_core.data.splits import read_split_file
from metalearn_core.data.spool import ClassSpool, SpooledClass
from metalearn_core.data.workers import map_in_order
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.events import emit
from metalearn_core.storage import write_json

__all__ = ["build_dataset", "read_split_file"]

DEFAULT_OPTIONS = BuildOptions()
CHUNK = 64
FEW = 500
COLOR_SAMPLES = 64
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
    time for finding the rotations grows with the square of the number of classes.

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
    _check(options)
    earlier = _earlier_splits(split_from)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already and not empty: choose another folder, or remove it")
    opened = open_source(source)
    with _named_errors(out), private_folder(out) as folder:
        manifest = _build(opened, folder, options, workers, earlier)
        write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
    there = read_manifest(out)
    if there.digest != manifest.digest:
        raise MetalearnError(
            f"{out}: another build put dataset {there.digest} there meanwhile, this one was to be {manifest.digest}: "
            "choose another folder"
        )
    emit("progress", "build", done=1.0, total=1.0, text=f"{len(there.classes)} classes")
    return there


@contextmanager
def _named_errors(out: Path) -> Iterator[None]:
    """Name the dataset in the system's errors that name no file: a disk that is full while a file is written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = (error.strerror or str(error)).lower()
        raise MetalearnError(f"{out}: the dataset cannot be written: {reason}") from None


def _build(
    opened: Source, folder: Path, options: BuildOptions, workers: int | None, earlier: Mapping[str, Split]
) -> Manifest:
    """Write the shards of a source's dataset into a folder; return the manifest."""
    scratch = folder / "scratch"
    scratch.mkdir()
    classes = sorted(opened.classes(scratch), key=lambda found: found.name)
    _require_classes(opened.location, [found.name for found in classes])
    color = _resolve_color(opened, classes, options)
    if opened.modality == "image":
        options = options.model_copy(update={"color": color})
    with closing(ClassSpool(scratch)) as spool:
        loader = opened.loader(options.image_size, color)
        unreadable = _decode(opened, classes, loader, spool, options, workers)
        manifest = _commit(opened, folder, spool, unreadable, options, earlier)
    shutil.rmtree(scratch)
    return manifest


def _check(options: BuildOptions) -> None:
    least = (("image_size", 1), ("min_examples", 1))
    for name, bound in least:
        if (value := getattr(options, name)) < bound:
            raise UsageError(f"{name} must be at least {bound}, got {value}")
    if not 0 <= options.max_unreadable <= 1:
        raise UsageError(f"max_unreadable must be a share between 0 and 1, got {options.max_unreadable}")
    ratios = options.ratios
    if min(ratios) < 0 or not math.isclose(sum(ratios), 1, abs_tol=1e-6):
        given = ",".join(f"{ratio:g}" for ratio in ratios)
        raise UsageError(f"ratios must be three shares that sum to 1, got {given}")


def _earlier_splits(split_from: Path | None) -> dict[str, Split]:
    if split_from is None:
        return {}
    folder = split_from if split_from.is_dir() else split_from.parent
    if not split_from.is_dir() and split_from.name != MANIFEST_NAME:
        raise UsageError(f"split_from {split_from}: expected the {MANIFEST_NAME} of an episode dataset")
    return {entry.name: entry.split for entry in read_manifest(folder).classes}


def _require_classes(source: str, names: Sequence[str]) -> None:
    if len(names) == 1:
        raise MetalearnError(f"source {source!r}: one class only ({names[0]!r}), expected a folder for each of several")
    for one, other in itertools.pairwise(names):
        if one == other:
            raise MetalearnError(f"source {source!r}: two classes are named {one!r}")


def _resolve_color(source: Source, classes: Sequence[SourceClass], options: BuildOptions) -> Color:
    """Return the colour: where left open, grey if all of some files, evenly spaced in sorted order, are."""
    if options.color != "auto":
        return options.color
    if source.modality != "image":
        return "grey"
    ends = np.cumsum([len(found.items) for found in classes])
    picks = np.unique(np.linspace(0, ends[-1] - 1, COLOR_SAMPLES).astype(np.int64))
    for pick in picks:
        position = int(np.searchsorted(ends, pick, side="right"))
        items = classes[position].items
        if not source.is_grey(items[int(pick - ends[position])]):
            return "rgb"
    return "grey"


def _decode(
    source: Source,
    classes: Sequence[SourceClass],
    loader: Loader,
    spool: ClassSpool,
    options: BuildOptions,
    workers: int | None,
) -> list[Unreadable]:
    """Decode everything, class by class, into the spool; return what could not be read."""
    total = sum(len(found.items) for found in classes)
    if workers is None:
        workers = available_cores() if total >= FEW else 1
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
    _judge_unreadable(source, unreadable, total, options)
    return unreadable


def _chunks(classes: Sequence[SourceClass]) -> Iterator[Sequence[Item]]:
    for found in classes:
        for start in range(0, len(found.items), CHUNK):
            yield found.items[start : start + CHUNK]


def _judge_unreadable(source: Source, unreadable: Sequence[Unreadable], total: int, options: BuildOptions) -> None:
    for bad in unreadable:
        emit("warning", "build", text=f"{bad.path}: {bad.reason}: left out")
    if len(unreadable) > options.max_unreadable * total:
        first = unreadable[0]
        raise MetalearnError(
            f"source {source.location!r}: {len(unreadable)} of {total} examples cannot be read, more than "
            f"max_unreadable {options.max_unreadable:g} allows; the first: {first.path}: {first.reason}"
        )


def _commit(
    source: Source,
    folder: Path,
    spool: ClassSpool,
    unreadable: Sequence[Unreadable],
    options: BuildOptions,
    earlier: Mapping[str, Split],
) -> Manifest:
    """Give the spooled classes their splits and rotations, and write the shards; return the manifest."""
    kept = [found for found in spool.classes if found.count >= options.min_examples]
    left_out = [found.name for found in spool.classes if found.count < options.min_examples]
    for name in left_out:
        emit("warning", "build", text=f"class {name}: fewer than {options.min_examples} examples: left out")
    if len(kept) < 2:
        raise MetalearnError(
            f"source {source.location!r}: {len(kept)} of {len(spool.classes)} classes have at least "
            f"{options.min_examples} readable examples, expected two at least"
        )
    options, split_of = _splits(source, kept, left_out, options, earlier)
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
        digest=content_digest(spec, options, source.rasteriser, entries),
        source=source.location,
        rasteriser=source.rasteriser,
        spec=spec,
        options=options,
        classes=tuple(entries),
        shards=shards,
        unreadable=tuple(unreadable),
        left_out=tuple(left_out),
    )


def _splits(
    source: Source,
    kept: Sequence[SpooledClass],
    left_out: Sequence[str],
    options: BuildOptions,
    earlier: Mapping[str, Split],
) -> tuple[BuildOptions, dict[str, Split]]:
    """Return the options with `split_by` resolved, and each class's split."""
    names = [found.name for found in kept]
    if options.split_file is not None:
        rows = tuple(sorted(options.split_file))
        resolved = options.model_copy(update={"split_by": "class", "split_file": rows})
        assigned = splits.assign_from_file(names, [row for row in rows if row[0] not in left_out])
        return resolved, assigned
    domain_of = {found.name: found.domain for found in kept}
    split_by = splits.resolve_split_by(options.split_by, source.default_split_by, len(set(domain_of.values())))
    resolved = options.model_copy(update={"split_by": split_by})
    return resolved, splits.assign_splits(domain_of, options, split_by, earlier)


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
