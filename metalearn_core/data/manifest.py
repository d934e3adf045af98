"""What an episode dataset says about itself: `manifest.json`, and the short description that learners are made from."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from metalearn_core.errors import MetalearnError, UsageError, complaint
from metalearn_core.storage import read_json, text_digest
from metalearn_core.storage.place import Place

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
LARGEST_IMAGE = 1024
LARGEST_SEED = 2**32 - 1  # that every generator of random numbers takes

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Record(BaseModel):
    """Data that travels: immutable, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildOptions(Record):
    """How a source becomes an episode dataset; part of the dataset's digest.

    Attributes:
        image_size: height and width in pixels of the stored images.
        color: `grey` (1 channel), `rgb` (3), or `auto`: grey where every image is.
        split_by: whole classes, or whole domains, go to a split; `auto` lets the source and its domains decide.
        split_file: the content of a CSV file with the columns class and split, as (class, split) pairs; overrides
            split_by.
        ratios: shares of the classes for train, validation and test.
        split_seed: which classes go where; independent of any training seed.
        rotations: in which splits the quarter turns of a class count as further classes.
        min_examples: classes with fewer examples are left out, and named in the manifest.
        max_unreadable: the build stops when a larger share of the files cannot be read.

    Raises:
        UsageError: a size, number or share is out of range, or the ratios do not sum to 1.
    """

    image_size: int = 28
    color: Literal["auto", "grey", "rgb"] = "auto"
    split_by: Literal["auto", "class", "domain"] = "auto"
    split_file: tuple[tuple[str, Split], ...] | None = None
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15)
    split_seed: int = 0
    rotations: Literal["train", "all", "none"] = "train"
    min_examples: int = 1
    max_unreadable: float = 0.05

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UsageError(f"image_size must be 1 to {LARGEST_IMAGE} pixels, got {self.image_size}")
        if self.min_examples < 1:
            raise UsageError(f"min_examples must be at least 1, got {self.min_examples}")
        if not 0 <= self.max_unreadable <= 1:
            raise UsageError(f"max_unreadable must be a share between 0 and 1, got {self.max_unreadable}")
        if not (min(self.ratios) >= 0 and math.isclose(sum(self.ratios), 1, abs_tol=1e-6)):
            given = ",".join(f"{ratio:g}" for ratio in self.ratios)
            raise UsageError(f"ratios must be three shares that sum to 1, got {given}")
        return self


class ClassEntry(Record):
    """One class: `rotations` are the quarter turns that count as classes of their own (always with 0)."""

    id: int
    name: str
    domain: str
    split: Split
    count: int
    shard: int
    row_group: int
    rotations: tuple[int, ...]
    digest: str


class Shard(Record):
    """One Parquet file of the dataset, by its path within it."""

    path: str
    sha256: str
    bytes: int


class Unreadable(Record):
    """A file of the source that could not be read, and why."""

    path: str
    reason: str


class DatasetSpec(Record):
    """What a learner must know of a dataset before it sees an example.

    Attributes:
        modality: `image` (c, h, w) or `vector` (d,).
        example_shape: the shape of one example.
        dtype: as stored; uint8 examples are divided by 255 before anything else.
        mean, std: of the training split, per channel or per feature, after that division.
        train_classes: classes of the training split, rotations counted; the outputs of a plain classifier.
        target_size: d of the real targets (d,) of regression; None: the targets are classes.
    """

    modality: Literal["image", "vector"]
    example_shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_classes: int
    target_size: int | None = None


class Manifest(Record):
    """Everything about an episode dataset but its examples.

    Attributes:
        digest: 32 hexadecimal digits over content and options alone (`content_digest`); the dataset's name in MLflow.
        source: the source's location, for people; not part of the digest.
        rasteriser: the version of what drew the examples, where the source draws them; part of the digest.
        options: with `auto` resolved to what was chosen.
        classes: sorted by split (train, validation, test), then name; `id` is the position.
        unreadable, left_out: what the source held and the dataset does not (paths; classes below min_examples).
    """

    schema_version: int = SCHEMA_VERSION
    digest: str
    source: str
    rasteriser: str = ""
    spec: DatasetSpec
    options: BuildOptions
    classes: tuple[ClassEntry, ...]
    shards: tuple[Shard, ...]
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[str, ...] = ()

    def of_split(self, split: Split) -> tuple[ClassEntry, ...]:
        """Return the classes of one split, in order."""
        return tuple(entry for entry in self.classes if entry.split == split)


def content_digest(spec: DatasetSpec, options: BuildOptions, rasteriser: str, classes: Iterable[ClassEntry]) -> str:
    """Return the name of a dataset with this content: 32 hexadecimal digits, never over bytes of Parquet.

    Every example is in it by its class's digest; where the examples lie in the shards is not.
    """
    content = {
        "spec": spec.model_dump(mode="json", exclude_none=True),
        "options": options.model_dump(mode="json"),
        "rasteriser": rasteriser,
        "classes": [entry.model_dump(mode="json", exclude={"shard", "row_group"}) for entry in classes],
    }
    return text_digest(content)[:32]


def read_manifest(location: str | Path) -> Manifest:
    """Read and check `manifest.json` of the episode dataset in a folder or at an `s3://` address.

    Raises:
        MetalearnError: it is missing, damaged, changed, or of a schema that this version does not know.
    """
    place = Place.at(location)
    path = place.folder / MANIFEST_NAME
    try:
        place.fetch([MANIFEST_NAME])
    except FileNotFoundError as error:
        raise MetalearnError(f"episode dataset: there is no {error.filename}") from None
    content = read_json(path, "episode dataset")
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise MetalearnError(
            f"episode dataset: {path} has schema version {version}, this version of metalearn reads up to "
            f"{SCHEMA_VERSION}: upgrade it, or build the dataset again"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise MetalearnError(f"episode dataset: {path} is damaged: {complaint(error)}") from None
    if manifest.digest != content_digest(manifest.spec, manifest.options, manifest.rasteriser, manifest.classes):
        raise MetalearnError(
            f"episode dataset: {path} is damaged: its digest does not fit its content: build the dataset again"
        )
    return manifest
