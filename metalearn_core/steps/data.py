"""The first steps: a source becomes an episode dataset, and the dataset is judged before anything is trained on it."""

import shutil
from pathlib import Path

from filelock import FileLock

from metalearn_core.data.manifest import BuildOptions, Manifest, read_manifest
from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.reuse import kept, result_digest
from metalearn_core.storage import read_json, write_json


def build_episodes(source: str, options: BuildOptions, storage: Path) -> tuple[Path, Manifest]:
    """Build the episode dataset of a source at `storage/datasets/<digest>`, or find it there.

    The source's listing (names, sizes and times of its files) and the options decide whether it was built before; a
    dataset that is damaged is built again.

    Returns:
        the dataset's folder and its manifest.
    """
    from metalearn_core.data.build import build_dataset
    from metalearn_core.data.dataset import verify_shards
    from metalearn_core.data.sources import open_source

    key = {"fingerprint": open_source(source).fingerprint(), "options": options.model_dump(mode="json")}
    name = result_digest("build", key)
    record = storage / "builds" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        if record.exists():
            folder = storage / "datasets" / read_json(record, "kept build")["digest"]
            try:
                manifest = read_manifest(folder)
                verify_shards(folder, manifest)
            except MetalearnError as error:
                emit("warning", "build", text=f"{error}; it is built again")
                shutil.rmtree(folder, ignore_errors=True)
            else:
                emit("note", "build", text=f"the source is unchanged: dataset {manifest.digest} is used again")
                return folder, manifest
        unfinished = storage / "builds" / name
        shutil.rmtree(unfinished, ignore_errors=True)
        manifest = build_dataset(source, unfinished, options)
        folder = _move(unfinished, storage / "datasets" / manifest.digest, manifest)
        write_json(record, {"digest": manifest.digest, **key})
    return folder, manifest


def _move(built: Path, folder: Path, manifest: Manifest) -> Path:
    """Move a built dataset to its digest's place; the same dataset, built from elsewhere, may stand there and be whole."""
    from metalearn_core.data.dataset import verify_shards

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{manifest.digest}.lock")):
        if folder.exists():
            try:
                verify_shards(folder, read_manifest(folder))
            except MetalearnError:
                shutil.rmtree(folder)
            else:
                shutil.rmtree(built)
                return folder
        built.rename(folder)
    return folder


def validate_episodes(dataset: Path, shapes: dict[str, tuple[int, int, int]], storage: Path) -> Path:
    """Judge an episode dataset for the episodes that are asked of it; keep and return the folder of the verdict.

    Args:
        dataset: the dataset's folder.
        shapes: way, shot and query by split.
        storage: where the verdict is kept: `quality.json`, `suite.json`, `quality.html`.

    Raises:
        MetalearnError: a check that must pass did not; the line names the first, and where the page is.
    """
    manifest = read_manifest(dataset)

    def make(folder: Path) -> None:
        from metalearn_core.data.dataset import EpisodeDataset
        from metalearn_core.data.episodes import EpisodeShape
        from metalearn_core.data.quality import validate_dataset, write_quality

        report = validate_dataset(
            EpisodeDataset.open(dataset), {split: EpisodeShape(*shape) for split, shape in shapes.items()}
        )
        write_quality(report, manifest, folder)

    key = {"dataset": manifest.digest, "shapes": shapes}
    folder, _ = kept(storage / "results", "quality", key, make)
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
