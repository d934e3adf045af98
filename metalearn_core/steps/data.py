"""The first steps: a source becomes an episode dataset, and the dataset is judged before anything is trained on it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import ValidationError

from metalearn_core.data.manifest import BuildOptions, Manifest, Split, read_manifest
from metalearn_core.errors import MetalearnError, invalid
from metalearn_core.events import emit
from metalearn_core.reuse import kept, result_digest
from metalearn_core.steps.requests import TrainingRequest
from metalearn_core.storage import read_json, write_json

PART = "part"

if TYPE_CHECKING:
    from metalearn_core.data.shape import EpisodeShape


def write_pointer(path: Path, folder: Path, manifest: Manifest) -> None:
    """Write the pointer by which a dataset goes from step to step: KFP would copy the dataset itself into every pod."""
    write_json(path, {"uri": str(folder), "digest": manifest.digest})


def read_pointer(path: str | Path) -> tuple[Path, str]:
    """Return where a pointer says that the dataset is, and its digest."""
    pointer = read_json(Path(path), "pointer to a dataset")
    return Path(pointer["uri"]), str(pointer["digest"])


def read_dataset(folder: Path, digest: str) -> Manifest:
    """Return the manifest of the dataset in `folder`, which must be the one that was built.

    Raises:
        MetalearnError: another dataset is there.
    """
    manifest = read_manifest(folder)
    if manifest.digest != digest:
        raise MetalearnError(f"dataset {folder}: expected digest {digest}, found {manifest.digest}: it was replaced")
    return manifest


def verify_dataset(folder: Path) -> Manifest:
    """Check every shard of a dataset by its sha256, and return its manifest.

    Raises:
        MetalearnError: something is missing or damaged.
    """
    from metalearn_core.data.shards import verify_shard

    manifest = read_manifest(folder)
    for shard in manifest.shards:
        verify_shard(folder, shard)
    return manifest


def build_options(split_file: str, **options: Any) -> BuildOptions:
    """Return the options of a build, a split file's content among them.

    Raises:
        UsageError: an option's value is none that it may have.
        MetalearnError: the split file cannot be read.
    """
    from metalearn_core.data.splits import read_split_file

    pairs = read_split_file(Path(split_file).expanduser()) if split_file else None
    try:
        return BuildOptions(split_file=pairs, **options)
    except ValidationError as error:
        raise invalid("build option", error, BuildOptions) from None


def decode_part(source: str, options: BuildOptions, storage: Path, shard: str, split_from: str = "") -> None:
    """Decode one part of a build that is shared out, and keep it for `build_episodes`; unless that was built before.

    Args:
        source, options, storage, split_from: see `build_episodes`.
        shard: which part, as `1/4`.
    """
    if _record_of(source, options, storage, split_from)[0].exists():
        emit("note", "decode", text=f"the source is unchanged: part {shard} is not needed")
    else:
        _part(source, options, storage, shard)


def _part(source: str, options: BuildOptions, storage: Path, shard: str) -> Path:
    """Return the folder of a part, decoded now unless it is kept."""
    from metalearn_core.data.parts import build_part, parse_shard

    number, of = parse_shard(shard)
    key = {**_content_key(source, options), "shard": [number, of]}

    def make(folder: Path) -> None:
        build_part(source, folder / PART, options, number, of)

    folder, _ = kept(storage / "results", "part", key, make)
    return folder / PART


def _content_key(source: str, options: BuildOptions) -> dict[str, Any]:
    """Return what decides what is decoded: the source's listing, and the options."""
    from metalearn_core.data.sources import open_source

    return {"fingerprint": open_source(source).fingerprint(), "options": options.model_dump(mode="json")}


def _record_of(
    source: str, options: BuildOptions, storage: Path, split_from: str
) -> tuple[Path, dict[str, Any], Path | None]:
    """Return where a build is recorded, its key, and the place of the earlier build whose splits are kept."""
    from metalearn_core.data.build import earlier_build

    key = _content_key(source, options)
    earlier_place = Path(split_from) if split_from else None
    if earlier := earlier_build(options, earlier_place):
        key["split_from"] = earlier.digest
    return storage / "builds" / f"{result_digest('build', key)}.json", key, earlier_place


def build_episodes(
    source: str, options: BuildOptions, storage: Path, split_from: str = "", shards: Sequence[str] = ()
) -> tuple[Path, Manifest]:
    """Build the episode dataset of a source at `storage/datasets/<digest>`, or find it there.

    The source's listing (names, sizes and times of its files) and the options decide whether it was built before; a
    dataset that is damaged is built again.

    Args:
        source: location of the labelled examples.
        options: of the build.
        storage: where datasets are kept.
        split_from: manifest or folder of an older dataset, whose classes keep their splits; empty: none.
        shards: the parts that `decode_part` has decoded, as `1/4`; none: the source is decoded here.

    Returns:
        the dataset's folder and its manifest.
    """
    from metalearn_core.data.build import build_dataset
    from metalearn_core.data.parts import merge_parts

    record, key, earlier_place = _record_of(source, options, storage, split_from)
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        if record.exists():
            try:
                folder, manifest = _recorded(record, storage)
            except MetalearnError as error:
                emit("warning", "build", text=f"{error}; it is built again")
            else:
                emit("note", "build", text=f"the source is unchanged: dataset {manifest.digest} is used again")
                return folder, manifest
        unfinished = record.with_suffix("")
        shutil.rmtree(unfinished, ignore_errors=True)
        if shards:
            parts = [_part(source, options, storage, shard) for shard in shards]
            manifest = merge_parts(parts, unfinished, split_from=earlier_place)
        else:
            parts = []
            manifest = build_dataset(source, unfinished, options, split_from=earlier_place)
        folder = _move(unfinished, storage / "datasets" / manifest.digest, manifest)
        write_json(record, {"digest": manifest.digest, **key})
        for part in parts:  # as large as the dataset, and of no use any more
            shutil.rmtree(part.parent, ignore_errors=True)
    return folder, manifest


def _recorded(record: Path, storage: Path) -> tuple[Path, Manifest]:
    """Return the dataset that a record of a build names; where it is damaged, it is removed and an error raised."""
    content = read_json(record, "kept build")
    digest = content.get("digest") if isinstance(content, dict) else None
    if not isinstance(digest, str) or not digest.isalnum():
        raise MetalearnError(f"kept build: {record} names no dataset")
    folder = storage / "datasets" / digest
    try:
        return folder, verify_dataset(folder)
    except MetalearnError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _move(built: Path, folder: Path, manifest: Manifest) -> Path:
    """Move a built dataset to its digest's place; the same one, built from elsewhere, may stand there and be whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{manifest.digest}.lock")):
        if folder.exists():
            try:
                verify_dataset(folder)
            except MetalearnError:
                shutil.rmtree(folder)
            else:
                shutil.rmtree(built)
                return folder
        built.rename(folder)
    return folder


def wanted_shapes(request: TrainingRequest) -> "dict[Split, EpisodeShape]":
    """Return the shapes of the episodes that a dataset must be able to give.

    Validation and test give evaluation episodes. The training split gives what was asked for, or at the least episodes
    of the evaluation's way with one query: a recipe shrinks to what a dataset has.
    """
    from metalearn_core.data.shape import EpisodeShape

    evaluation = EpisodeShape(request.way, request.shot, request.query)
    train = EpisodeShape(request.train_way or request.way, request.train_shot or request.shot, request.train_query or 1)
    return {"train": train, "validation": evaluation, "test": evaluation}


def validate_dataset(dataset: Path, dataset_digest: str, request: TrainingRequest) -> Path:
    """Judge an episode dataset for the episodes that are asked of it; return the folder of the verdict.

    The verdict is kept with the dataset: `quality.json`, `suite.json` and `quality.html` in a folder of its own below.

    Args:
        dataset: the dataset's folder.
        dataset_digest: its digest.
        request: the episodes, by their shapes.

    Raises:
        MetalearnError: a check that must pass did not; the line names the first, and where the page is.
    """
    manifest = read_dataset(dataset, dataset_digest)
    shapes = wanted_shapes(request)

    def make(folder: Path) -> None:
        from metalearn_core.data import quality
        from metalearn_core.data.dataset import EpisodeDataset

        quality.write_quality(quality.validate_dataset(EpisodeDataset.open(dataset), shapes), manifest, folder)

    key = {"dataset": manifest.digest, "shapes": {split: str(shape) for split, shape in shapes.items()}}
    folder, _ = kept(dataset, "quality", key, make)
    verdict = read_json(folder / "quality.json", "data quality")
    failed = [check for check in verdict["checks"] if check["blocking"] and not check["passed"]]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise MetalearnError(
            f"dataset {manifest.digest} is not fit for these episodes: {first['name']}: found {first['observed']}, "
            f"wanted {first['expected']}{more}; see {folder / 'quality.html'}"
        )
    return folder
