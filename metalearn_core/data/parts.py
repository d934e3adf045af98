"""A build that is shared out: each worker decodes every n-th class into a part, and the parts make one dataset."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from metalearn_core.data.build import (
    by_path,
    commit_dataset,
    decode_classes,
    earlier_build,
    judge_unreadable,
    prepared,
    require_classes,
    require_new_folder,
    there_now,
)
from metalearn_core.data.build_folder import private_folder
from metalearn_core.data.decode import Decoded
from metalearn_core.data.manifest import MANIFEST_NAME, BuildOptions, Manifest, Record, Shard, Unreadable
from metalearn_core.data.shards import HASH_BYTES, ClassBlock, ShardWriter, read_class, verify_shard
from metalearn_core.data.sources.contract import Origin
from metalearn_core.data.sources.open import open_source
from metalearn_core.data.spool import ClassSpool
from metalearn_core.errors import MetalearnError, UsageError, complaint
from metalearn_core.resources import available_cores
from metalearn_core.storage import named_errors, read_json, write_json

PART_NAME = "part.json"


class PartClass(Record):
    """A decoded class of a part; `shard` and `row_group` are None where none of its examples could be read."""

    name: str
    domain: str
    shard: int | None
    row_group: int | None


class Part(Record):
    """What a part says about itself.

    Attributes:
        location, default_split_by, rasteriser: of the source.
        fingerprint: of the source's listing when the part was made: parts of one build have the same.
        options: of the whole build.
        number, of: this part is the `number`-th, from 0, of so many: classes number, number + of, … by name.
        total: examples that were tried.
    """

    schema_version: int = 1
    location: str
    default_split_by: Literal["auto", "class", "domain"]
    rasteriser: str
    fingerprint: str
    options: BuildOptions
    number: int = Field(ge=0)
    of: int = Field(ge=1)
    example_shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    total: int
    classes: tuple[PartClass, ...]
    shards: tuple[Shard, ...]
    unreadable: tuple[Unreadable, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.number >= self.of:
            raise UsageError(f"shard {self.number + 1}/{self.of}: expected 1/{self.of} to {self.of}/{self.of}")
        return self


def parse_shard(text: str) -> tuple[int, int]:
    """Return the number of a part, from 0, and how many there are, from a text like `2/8`.

    Raises:
        UsageError: it is none.
    """
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UsageError(f"shard {text!r}: expected a share as 2/8, from 1/8 to 8/8")
    return int(number) - 1, int(of)


def build_part(
    source: str, out: Path, options: BuildOptions, number: int, of: int, *, workers: int | None = None
) -> Part:
    """Decode a share of a source's classes into the folder `out`: whole, or not at all.

    Args:
        source: see `open_source`; the same for every part.
        out: a folder that does not exist yet, or is empty.
        options: of the whole build; the colour must be given, since a part does not see every image.
        number: of the part, from 0.
        of: how many parts there are.
        workers: decoding processes; by default one a core.

    Raises:
        UsageError: an option is wrong, or the colour is left open.
        MetalearnError: the source is missing, empty, of one class only, or was changed while it was read.
    """
    require_new_folder(out, source)
    opened = open_source(source)
    before, fingerprint = opened.fingerprint(), opened.listing_digest()
    if options.color == "auto" and opened.grey_test() is not None:
        raise UsageError("color: a part of a build does not see every image: give grey or rgb")
    with named_errors(out), private_folder(out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        classes = sorted(opened.classes(scratch), key=lambda found: found.name)
        require_classes(opened.location, [found.name for found in classes])
        mine = classes[number::of]
        opened.bring(mine)
        workers = workers or available_cores()
        options, loader = prepared(opened, mine, options, workers)
        with closing(opened), closing(ClassSpool(scratch)) as spool:
            unreadable = decode_classes(mine, loader, spool, workers)
            entries, shards = _write(spool, folder)
            part = Part(
                location=opened.location,
                default_split_by=opened.default_split_by,
                rasteriser=opened.rasteriser,
                fingerprint=fingerprint,
                options=options,
                number=number,
                of=of,
                example_shape=spool.example_shape,
                dtype=spool.dtype,
                total=sum(len(found.items) for found in mine),
                classes=entries,
                shards=shards,
                unreadable=tuple(unreadable),
            )
        if open_source(source).fingerprint() != before:
            raise MetalearnError(f"source {source!r}: was changed while it was read: start again when it is complete")
        shutil.rmtree(scratch)
        write_json(folder / PART_NAME, part.model_dump(mode="json"))
    return part


def merge_parts(parts: Sequence[Path], out: Path, *, split_from: Path | None = None) -> Manifest:
    """Make the episode dataset of all parts of a build: the one that a build at once makes, with its digest.

    Args:
        parts: the folders of all parts, in any order.
        out: a folder that does not exist yet, or is empty.
        split_from: `manifest.json` (or the folder) of an earlier build, whose classes keep their splits.

    Raises:
        UsageError: parts are missing, doubled, or of different builds.
        MetalearnError: a part is missing or damaged; or what `build_dataset` raises.
    """
    require_new_folder(out)
    described = _described(parts)
    first = described[0][1]
    origin = Origin(first.location, first.default_split_by, first.rasteriser)
    earlier = earlier_build(first.options, split_from)
    with named_errors(out), private_folder(out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        with closing(ClassSpool(scratch)) as spool:
            for name, domain, blocks in _classes(described):
                spool.add(name, domain, blocks)
            unreadable = by_path(bad for _, part in described for bad in part.unreadable)
            judge_unreadable(first.location, unreadable, sum(part.total for _, part in described), first.options)
            manifest = commit_dataset(origin, folder, spool, unreadable, first.options, earlier)
        shutil.rmtree(scratch)
        write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
    return there_now(out, manifest)


def read_part(folder: Path) -> Part:
    """Read `part.json`, and compare the part's shards with their digests.

    Raises:
        MetalearnError: it is missing or damaged.
    """
    try:
        part = Part.model_validate(read_json(folder / PART_NAME, "part of a build"))
    except ValidationError as error:
        raise MetalearnError(f"part of a build: {folder / PART_NAME} is damaged: {complaint(error)}") from None
    for shard in part.shards:
        verify_shard(folder, shard)
    return part


def _write(spool: ClassSpool, folder: Path) -> tuple[tuple[PartClass, ...], tuple[Shard, ...]]:
    writer = ShardWriter(folder, spool.example_shape, spool.dtype)
    entries = []
    try:
        for number, found in enumerate(spool.classes):
            place: tuple[int | None, int | None] = (None, None)
            if found.count:
                hashes = [whole[:HASH_BYTES] for whole in found.hashes]
                place = writer.write(ClassBlock(number, found.keys, hashes, spool.examples(found)))
            entries.append(PartClass(name=found.name, domain=found.domain, shard=place[0], row_group=place[1]))
        return tuple(entries), writer.close()
    finally:
        writer.abandon()


def _described(folders: Sequence[Path]) -> list[tuple[Path, Part]]:
    """Return the parts in their order, each once, all of one build."""
    found = sorted(((folder, read_part(folder)) for folder in folders), key=lambda pair: pair[1].number)
    if not found:
        raise UsageError("merge: there are no parts")
    first = found[0][1]
    for folder, part in found:
        for name in ("of", "options", "fingerprint"):
            if getattr(part, name) != getattr(first, name):
                raise UsageError(f"{folder}: belongs to another build than {found[0][0]}: its {name} is another")
    numbers = [part.number for _, part in found]
    if numbers != list(range(first.of)):
        missing = sorted(set(range(first.of)) - set(numbers))
        what = f"part {missing[0] + 1}/{first.of} is missing" if missing else "a part is given twice"
        raise UsageError(f"merge: {what}; got {', '.join(f'{number + 1}/{first.of}' for number in numbers)}")
    return found


def _classes(described: Sequence[tuple[Path, Part]]) -> Iterator[tuple[str, str, list[Decoded]]]:
    """Yield the classes of all parts by name, with their examples."""
    every = [(entry, folder, part) for folder, part in described for entry in part.classes]
    for entry, folder, part in sorted(every, key=lambda found: found[0].name):
        if entry.shard is None or entry.row_group is None:
            yield entry.name, entry.domain, []
            continue
        path = folder / part.shards[entry.shard].path
        keys, examples = read_class(path, entry.row_group, part.example_shape, part.dtype)
        hashes = [hashlib.sha256(np.ascontiguousarray(example).tobytes()).digest() for example in examples]
        yield entry.name, entry.domain, [Decoded(examples, hashes, keys, [])]
