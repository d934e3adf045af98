"""The first steps: a source becomes an episode dataset, and the dataset is judged before anything is trained on it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import ValidationError

from metalearn_core.data.manifest import MANIFEST_NAME, BuildOptions, Manifest, Split, read_manifest
from metalearn_core.errors import MetalearnError, StorageError, UsageError, invalid
from metalearn_core.events import emit
from metalearn_core.reuse import discard, is_kept, kept, result_place
from metalearn_core.steps.requests import TrainingRequest, check_learners
from metalearn_core.storage import read_json, write_json
from metalearn_core.storage.place import Place

PART, BUILD = "part", "build.json"

if TYPE_CHECKING:
    from metalearn_core.data.shape import EpisodeShape


def write_pointer(path: Path, location: str, manifest: Manifest) -> None:
    """Write the pointer by which a dataset goes from step to step: KFP would copy the dataset itself into every pod."""
    write_json(path, {"uri": location, "digest": manifest.digest})


def read_pointer(path: str | Path) -> tuple[str, str]:
    """Return where a pointer says that the dataset is, and its digest."""
    pointer = read_json(Path(path), "pointer to a dataset")
    return str(pointer["uri"]), str(pointer["digest"])


def read_dataset(location: str, digest: str) -> Manifest:
    """Return the manifest of the dataset at a location, which must be the one that was built.

    Raises:
        MetalearnError: another dataset is there.
    """
    manifest = read_manifest(location)
    if manifest.digest != digest:
        raise MetalearnError(f"dataset {location}: expected digest {digest}, found {manifest.digest}: it was replaced")
    return manifest


def verify_dataset(location: str) -> Manifest:
    """Check every shard of a dataset by its sha256, and return its manifest.

    Raises:
        MetalearnError: something is missing or damaged.
    """
    from metalearn_core.data.dataset import local_dataset
    from metalearn_core.data.shards import verify_shard

    folder, manifest = local_dataset(location)
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

    pairs = None
    if split_file:
        folder, name = split_place(split_file)
        pairs = read_split_file(folder / name)
    try:
        return BuildOptions(split_file=pairs, **options)
    except ValidationError as error:
        raise invalid("build option", error, BuildOptions) from None


def split_place(location: str) -> tuple[Path, str]:
    """Return the folder on this machine that holds a file about splits, and its name; an object is brought here.

    Raises:
        MetalearnError: there is no such object.
    """
    place = Place.at(location)
    if place.prefix is None:
        return place.folder.parent, place.folder.name
    parent, name = Place.at(str(place.prefix.parent)), place.prefix.name
    try:
        parent.fetch([name])
    except FileNotFoundError as error:
        raise MetalearnError(f"{error.filename}: there is no such object") from None
    return parent.folder, name


def earlier_place(split_from: str) -> Path | None:
    """Return the path of an earlier dataset's manifest on this machine, from what `split_from` says; None: nothing."""
    if not split_from:
        return None
    place = Place.at(split_from)
    if place.prefix is None:
        return place.folder
    if place.prefix.name == MANIFEST_NAME:
        folder, name = split_place(split_from)
        return folder / name
    read_manifest(split_from)
    return place.folder


def decode_part(source: str, options: BuildOptions, storage: Place, shard: str, split_from: str = "") -> None:
    """Decode one part of a build that is shared out, and keep it for `build_episodes`; unless that was built before.

    Args:
        source, options, storage, split_from: see `build_episodes`.
        shard: which part, as `1/4`.
    """
    key, _ = _build_key(source, options, split_from)
    if is_kept(storage / "results", "build", key):
        emit("note", "decode", text=f"the source is unchanged: part {shard} is not needed")
    else:
        _part(source, options, storage, shard)


def _part(source: str, options: BuildOptions, storage: Place, shard: str) -> Path:
    """Return the folder of a part, decoded now unless it is kept."""
    from metalearn_core.data.parts import build_part, parse_shard

    number, of = parse_shard(shard)

    def make(folder: Path) -> None:
        build_part(source, folder / PART, options, number, of)

    folder, _ = kept(storage / "results", "part", _part_key(source, options, shard), make)
    return folder / PART


def _part_key(source: str, options: BuildOptions, shard: str) -> dict[str, Any]:
    return {**_content_key(source, options), "shard": shard}


def _content_key(source: str, options: BuildOptions) -> dict[str, Any]:
    """Return what decides what is decoded: the source's listing, and the options."""
    from metalearn_core.data.sources.open import open_source

    return {"fingerprint": open_source(source).fingerprint(), "options": options.model_dump(mode="json")}


def _build_key(source: str, options: BuildOptions, split_from: str) -> tuple[dict[str, Any], Path | None]:
    """Return what decides what a build makes, and the place of the earlier build whose splits are kept."""
    from metalearn_core.data.build import earlier_build

    key, place = _content_key(source, options), earlier_place(split_from)
    if earlier := earlier_build(options, place):
        key["split_from"] = earlier.digest
    return key, place


def build_episodes(
    source: str, options: BuildOptions, storage: Place, split_from: str = "", shards: Sequence[str] = ()
) -> tuple[str, Manifest]:
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
        the dataset's location and its manifest.
    """
    key, earlier = _build_key(source, options, split_from)

    def make(folder: Path) -> None:
        manifest = _made(folder / "dataset", source, options, storage, shards, earlier)
        _move(folder / "dataset", storage / "datasets" / manifest.digest, manifest)
        write_json(folder / BUILD, {"digest": manifest.digest})

    results = storage / "results"
    while True:
        folder, was_kept = kept(results, "build", key, make)
        place = storage / "datasets" / str(read_json(folder / BUILD, "kept build")["digest"])
        try:
            manifest = _whole(place)
            break
        except StorageError:
            raise
        except MetalearnError as error:
            if not was_kept:
                raise
            emit("warning", "build", text=f"{error}; it is built again")
            discard(results, "build", key)
    if was_kept:
        emit("note", "build", text=f"the source is unchanged: dataset {manifest.digest} is used again")
    for shard in shards:  # as large as the dataset, and of no use any more
        result_place(results, "part", _part_key(source, options, shard)).remove()
    return place.location, manifest


def build_at(location: str, build: Callable[[Path], Manifest]) -> Manifest:
    """Let `build` make a dataset in a new folder, and send it to its address where the location is one.

    Raises:
        UsageError: there is a dataset at the address already.
    """
    place = Place.at(location)
    if place.prefix is None:
        return build(place.folder)
    taken = UsageError(f"{location}: there is a dataset already: choose another address, or remove it")
    if place.has(MANIFEST_NAME):
        raise taken
    place.forget()
    manifest = build(place.folder)
    if not place.commit([shard.path for shard in manifest.shards], MANIFEST_NAME):
        raise taken
    return manifest


def _made(
    out: Path, source: str, options: BuildOptions, storage: Place, shards: Sequence[str], earlier: Path | None
) -> Manifest:
    """Build a dataset in a new folder, from parts where there are some."""
    from metalearn_core.data.build import build_dataset
    from metalearn_core.data.parts import merge_parts

    if shards:
        return merge_parts([_part(source, options, storage, shard) for shard in shards], out, split_from=earlier)
    return build_dataset(source, out, options, split_from=earlier)


def _whole(place: Place) -> Manifest:
    """Return the manifest of a kept dataset; where that is damaged, it is removed and an error raised."""
    try:
        return verify_dataset(place.location)
    except StorageError:
        raise
    except MetalearnError:
        if place.prefix is None:
            place.remove()
            raise
        place.forget()  # this machine's copy may be what is damaged
    try:
        return verify_dataset(place.location)
    except StorageError:
        raise
    except MetalearnError:
        place.remove()
        raise


def _move(built: Path, place: Place, manifest: Manifest) -> None:
    """Move a built dataset to its digest's place; the same one, built from elsewhere, may stand there and be whole."""
    folder = place.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{manifest.digest}.lock")):
        if place.has(MANIFEST_NAME):
            try:
                _whole(place)
            except StorageError:
                raise
            except MetalearnError as error:
                emit("warning", "build", text=f"{error}; it is built again")
            else:
                shutil.rmtree(built)
                return
        place.forget()
        built.rename(folder)
        if not place.commit([shard.path for shard in manifest.shards], MANIFEST_NAME):
            place.forget()  # another machine was first: its files are used
            _whole(place)


def wanted_shapes(request: TrainingRequest) -> "dict[Split, EpisodeShape]":
    """Return the shapes of the episodes that a dataset must be able to give.

    Validation and test give evaluation episodes. The training split gives what was asked for, or at the least episodes
    of the evaluation's way with one query: a recipe shrinks to what a dataset has.
    """
    from metalearn_core.data.shape import EpisodeShape

    evaluation = request.shape
    train = EpisodeShape.of(
        request.train_way or request.way, request.train_shot or request.shot, request.train_query or 1
    )
    return {"train": train, "validation": evaluation, "test": evaluation}


def validate_dataset(
    dataset: str, dataset_digest: str, request: TrainingRequest, items: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Judge an episode dataset for what is asked of it; return the folder of the verdict.

    The verdict is kept with the dataset: `quality.json`, `suite.json` and `quality.html` in a folder of its own below.

    Args:
        dataset: the dataset's location.
        dataset_digest: its digest.
        request: the episodes, by their shapes.
        items: JSON of the learners that are to be trained on it.

    Raises:
        MetalearnError: a check that must pass did not; the line names the first, and where the page is kept.
        UsageError: a learner cannot be trained on it.
    """
    manifest = read_dataset(dataset, dataset_digest)
    shapes = wanted_shapes(request)

    def make(folder: Path) -> None:
        from metalearn_core.data import quality
        from metalearn_core.data.dataset import EpisodeDataset

        quality.write_quality(quality.validate_dataset(EpisodeDataset.open(dataset), shapes), manifest, folder)

    key = {"dataset": manifest.digest, "shapes": {split: str(shape) for split, shape in shapes.items()}}
    root = Place.at(dataset)
    folder, _ = kept(root, "quality", key, make)
    verdict = read_json(folder / "quality.json", "data quality")
    failed = [check for check in verdict["checks"] if check["blocking"] and not check["passed"]]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        page = result_place(root, "quality", key) / "quality.html"
        raise MetalearnError(
            f"dataset {manifest.digest} is not fit for these episodes: {first['name']}: found {first['observed']}, "
            f"wanted {first['expected']}{more}; see {page.location}"
        )
    check_learners(items, request, manifest)
    return folder
