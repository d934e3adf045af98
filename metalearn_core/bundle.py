"""The trained learner on disk: a description and its weights, checked by digest before anything is read from them."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from metalearn_core.data.manifest import DatasetSpec, Record
from metalearn_core.data.shape import TaskSpan
from metalearn_core.errors import MetalearnError, UsageError, complaint
from metalearn_core.storage import file_digest, json_bytes, new_folder, read_json, write_bytes
from metalearn_core.storage.place import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from metalearn_core.data.episodes import EpisodeShape
    from metalearn_core.learners import LearnerSpec
    from metalearn_core.learners.contract import Learner

DESCRIPTION_NAME, WEIGHTS_NAME, SUMS_NAME = "bundle.json", "weights.safetensors", "bundle.sha256"
IMAGES_NAME = "training_images.safetensors"
ADAPTED_NAME, ADAPTED_TENSORS_NAME = "adapted.json", "adapted.safetensors"
FORMAT_VERSION = 1
_REQUIRED = (DESCRIPTION_NAME, WEIGHTS_NAME)
_CONTENT = (*_REQUIRED, IMAGES_NAME, ADAPTED_NAME, ADAPTED_TENSORS_NAME)
_IMAGES_TENSOR = "fingerprints"


class DamagedError(MetalearnError):
    """A bundle that is not what was written: a file of it is missing, changed, or does not belong there."""


class EpisodeDefaults(Record):
    """The shape of the episodes that the learner was selected for; way and shot may be ranges, as "5-20"."""

    way: TaskSpan
    shot: TaskSpan
    query: int


class Lineage(Record):
    """Where a model comes from.

    Attributes:
        dataset_digest, dataset_uri: the episode dataset that it was trained on, and where that was.
        seed, episodes: of its training.
        code_version: of the package, with the commit.
        training_class_digests: content hashes of the training classes (`ClassEntry.digest`): what it has seen.
        mlflow_run_id: of its training.
    """

    dataset_digest: str
    dataset_uri: str = ""
    seed: int = 0
    episodes: int = 0
    code_version: str = ""
    training_class_digests: tuple[str, ...] = ()
    mlflow_run_id: str | None = None


class BundleDescription(Record):
    """The content of `bundle.json`.

    Attributes:
        format_version: of the bundle; an older package refuses a newer one.
        learner, options, backbone, backbone_options: what `make_learner` needs, every default written out.
        way: of a learner of fixed way, else None.
        input: what examples look like; the input contract.
        preprocessing: the same in words: what happens to a picture before the network sees it.
        episode: what it was selected for.
        batch_norm: inductive or transductive: how it was trained to normalise queries.
        lineage: where it comes from.
    """

    format_version: int = FORMAT_VERSION
    learner: str
    options: dict[str, Any] = Field(default_factory=dict)
    backbone: str
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    way: int | None
    input: DatasetSpec
    preprocessing: str
    episode: EpisodeDefaults
    batch_norm: str
    lineage: Lineage


def save_bundle(
    path: Path,
    learner: "Learner",
    spec: "LearnerSpec",
    *,
    episode: "EpisodeShape",
    lineage: "Lineage | Mapping[str, Any]",
    training_images: Sequence[bytes] | None = None,
) -> str:
    """Write the bundle folder `path` whole, and return its digest. A bundle that is there already is replaced.

    Args:
        path: the folder.
        learner: trained.
        spec: what it was made from.
        episode: the shape of the episodes that it is meant for.
        lineage: a `Lineage`, or its fields.
        training_images: content hashes of the examples that it was trained on (`EpisodeDataset.example_hashes`), so
            that none of them is tested on; their first eight bytes are kept. None: they are not known.

    Raises:
        UsageError: there is something else at `path`, or a field of the lineage is unknown.
    """
    from safetensors.torch import save

    from metalearn_core.learners import resolve_spec

    description = BundleDescription(
        **resolve_spec(spec).model_dump(),
        way=learner.way,
        input=learner.spec,
        preprocessing=_preprocessing(learner.spec),
        episode=EpisodeDefaults.model_validate(episode.spans),
        batch_norm=learner.batch_norm,
        lineage=_lineage(lineage),
    )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}
    files = {DESCRIPTION_NAME: json_bytes(description.model_dump(mode="json")), WEIGHTS_NAME: save(weights)}
    if training_images is not None:
        files[IMAGES_NAME] = _packed(training_images)
    return write_bundle(path, files)


def write_bundle(path: Path, files: Mapping[str, bytes]) -> str:
    """Write the files of a bundle whole, by their names, in the place of one that is there; return its digest.

    Raises:
        UsageError: there is something else at `path`.
    """
    check_place(Place(path))
    with _replacement(path) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_bytes(folder / SUMS_NAME, _sums(folder))
    return verify_bundle(path)


def check_place(place: Place) -> None:
    """Raise a UsageError where no bundle can be written at a place: found before any training, not after it."""
    path = place.folder
    if place.prefix and any(found.name not in {*_CONTENT, SUMS_NAME} for found in place.prefix.objects()):
        raise UsageError(f"bundle {place}: there is something else already: give another place")
    if path.exists() and not (path.is_dir() and {entry.name for entry in path.iterdir()} <= {*_CONTENT, SUMS_NAME}):
        raise UsageError(f"bundle {path}: there is something else already: give another place")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "no permission to write there" if parent.is_dir() else "it is no folder"
        raise UsageError(f"bundle {path}: {parent}: {what}: give another place")


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of what is at `path`, which is moved aside only then, and removed last.

    Where the new one cannot take its place, the old one goes back. A process that is killed between the two moves
    leaves the old one beside as `.NAME.old`; the next replacement clears it away.
    """
    aside = path.with_name(f".{path.name}.old")
    try:
        with new_folder(path) as folder:
            yield folder
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
    except BaseException:
        if not path.exists() and aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def read_bundle(path: Path) -> BundleDescription:
    """Read and check a bundle's description, without its weights; imports no torch.

    Raises:
        MetalearnError: there is no bundle, it is damaged, or it was written by a newer version.
    """
    verify_bundle(path)
    return _read_description(path)


def verify_bundle(path: Path) -> str:
    """Check every byte of a bundle, and return its digest: the sha256 of `bundle.sha256`. Imports no torch.

    Raises:
        DamagedError: a file is missing, damaged or does not belong there.
        MetalearnError: there is no such folder, or a newer version wrote the bundle.
    """
    if not path.is_dir():
        raise MetalearnError(f"bundle: there is no folder {path}")
    for name in (*_REQUIRED, SUMS_NAME):
        if not (path / name).is_file():
            raise DamagedError(f"bundle {path}: {name} is missing")
    try:
        content = read_json(path / DESCRIPTION_NAME, "bundle")
    except MetalearnError as error:  # the file is there: it is no JSON
        raise DamagedError(str(error)) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise MetalearnError(
            f"bundle {path}: has format version {version}, this version of metalearn reads up to {FORMAT_VERSION}: "
            "upgrade it"
        )
    if strange := sorted(entry.name for entry in path.iterdir() if entry.name not in {*_CONTENT, SUMS_NAME}):
        raise DamagedError(f"bundle {path}: holds {strange[0]!r}, which is no part of a bundle: it is not loaded")
    sums = (path / SUMS_NAME).read_bytes()
    for name in _CONTENT:
        if name.encode() in sums and not (path / name).is_file():
            raise DamagedError(f"bundle {path}: {name} is missing")
    expected = _sums(path)
    if sums != expected:
        damaged = [line.split()[-1] for line in expected.decode().splitlines() if line.encode() not in sums]
        what = f"{damaged[0]} is not what {SUMS_NAME} says" if damaged else f"{SUMS_NAME} is not as it was written"
        raise DamagedError(f"bundle {path}: {what}: it is damaged")
    return hashlib.sha256(sums).hexdigest()


def read_training_images(path: Path) -> "NDArray[np.int64]":
    """Return the `fingerprints` (n,) of the examples that a model was trained on; imports no torch.

    None, (0,), where the bundle does not know them.

    Raises:
        MetalearnError: what `verify_bundle` raises, or the file holds something else.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    verify_bundle(path)
    if not (path / IMAGES_NAME).exists():
        return np.empty(0, np.int64)
    try:
        return np.asarray(load((path / IMAGES_NAME).read_bytes())[_IMAGES_TENSOR], np.int64)
    except (SafetensorError, KeyError) as error:
        raise MetalearnError(f"bundle {path}: {IMAGES_NAME} holds no tensor {_IMAGES_TENSOR!r}: {error}") from None


def _packed(content_hashes: Sequence[bytes]) -> bytes:
    """Return the file of training images: one tensor (n,) int64 of distinct fingerprints, ascending."""
    import numpy as np
    from safetensors.numpy import save

    from metalearn_core.data.fingerprints import fingerprints

    return bytes(save({_IMAGES_TENSOR: np.unique(fingerprints(content_hashes))}))


def _sums(folder: Path) -> bytes:
    """Return what `bundle.sha256` has to say: a line a file, as sha256sum writes it."""
    present = [name for name in _CONTENT if name in _REQUIRED or (folder / name).exists()]
    return "".join(f"{file_digest(folder / name)}  {name}\n" for name in present).encode()


def load_bundle(path: Path) -> "tuple[Learner, BundleDescription]":
    """Make the learner of a bundle again, with its weights, in evaluation mode on the CPU.

    Raises:
        MetalearnError: what `verify_bundle` raises, or the weights are not those of the learner that is described.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from metalearn_core.learners import LearnerSpec, make_learner

    description = read_bundle(path)
    spec = LearnerSpec(**{name: getattr(description, name) for name in LearnerSpec.model_fields})
    try:
        learner = make_learner(spec, description.input, way=description.way)
        weights = load((path / WEIGHTS_NAME).read_bytes())
        first = next((tensor for tensor in weights.values() if tensor.is_floating_point()), None)
        if first is not None:
            learner.to(first.dtype)
        learner.load_state_dict(weights, strict=True)
    except UsageError as error:
        raise MetalearnError(f"bundle {path}: {DESCRIPTION_NAME}: {error}") from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MetalearnError(f"bundle {path}: {WEIGHTS_NAME} does not fit its {spec.learner}: {reason}") from None
    return learner.eval(), description


def _read_description(path: Path) -> BundleDescription:
    try:
        return BundleDescription.model_validate(read_json(path / DESCRIPTION_NAME, "bundle"))
    except ValidationError as error:
        raise MetalearnError(f"bundle {path}: {DESCRIPTION_NAME}: {complaint(error)}") from None


def _lineage(lineage: Lineage | Mapping[str, Any]) -> Lineage:
    if isinstance(lineage, Lineage):
        return lineage
    try:
        return Lineage.model_validate(dict(lineage))
    except ValidationError as error:
        from metalearn_core.errors import invalid

        raise invalid("lineage", error, Lineage) from None


def _preprocessing(spec: DatasetSpec) -> str:
    if spec.modality == "vector":
        return f"vectors of {spec.example_shape[0]} numbers, standardised by mean and std"
    channels, height, width = spec.example_shape
    color = "grey" if channels == 1 else "rgb"
    return (
        f"upright by its EXIF orientation, transparency on white, {color}, resized to {width} × {height} pixels "
        "(bicubic), divided by 255, standardised by mean and std"
    )


def send_bundle(place: Place) -> None:
    """Send a bundle that was written on this machine to where it belongs, in the place of one that is there."""
    place.replace([name for name in _CONTENT if (place.folder / name).exists()], SUMS_NAME)


def fetched(place: Place) -> Path:
    """Return the folder of a bundle in a bucket on this machine; only what has changed there is downloaded.

    Raises:
        MetalearnError: there is none, or a file of it is missing.
    """
    if not place.has(DESCRIPTION_NAME):
        raise MetalearnError(f"bundle: there is none at {place}")
    try:
        place.fetch([SUMS_NAME])
        sums = (place.folder / SUMS_NAME).read_bytes()
        listed = {name for name in _CONTENT if name in _REQUIRED or name.encode() in sums}
        place.fetch(sorted(listed))
    except FileNotFoundError as error:
        raise MetalearnError(f"bundle {place}: {error.filename} is missing") from None
    for name in _CONTENT:
        if name not in listed:
            (place.folder / name).unlink(missing_ok=True)
    return place.folder
