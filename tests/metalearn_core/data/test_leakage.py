"""A test image that was trained on is found, also where it was turned, and its class with it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.leakage import check_leakage
from metalearn_core.data.manifest import BuildOptions, Split
from metalearn_core.data.subset import split_hashes

SPLITS: dict[str, Split] = {"a": "train", "b": "train", "c": "validation", "d": "test", "e": "test", "f": "test"}
NOTHING = fingerprints([])


def picture(name: str, number: int) -> np.ndarray:
    return np.random.default_rng([number, *name.encode()]).integers(0, 256, (8, 8)).astype(np.uint8)


def build(folder: Path, planted: dict[str, np.ndarray]) -> EpisodeDataset:
    """Build classes of four pictures; `planted` adds one picture more to a class."""
    for name in SPLITS:
        (folder / "source" / name).mkdir(parents=True)
        pictures = [picture(name, number) for number in range(4)]
        for number, pixels in enumerate(pictures + ([planted[name]] if name in planted else [])):
            Image.fromarray(pixels).save(folder / "source" / name / f"{number}.png")
    options = BuildOptions(image_size=8, split_file=tuple(SPLITS.items()), rotations="none")
    build_dataset(str(folder / "source"), folder / "dataset", options, workers=1)
    return EpisodeDataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return build(tmp_path_factory.mktemp("clean"), {})


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """Of the test classes, d holds a training picture, and e one turned by 90 degrees clockwise."""
    planted = {"d": picture("a", 1), "e": np.rot90(picture("b", 2), -1)}
    return build(tmp_path_factory.mktemp("leaking"), planted)


def trained_on(dataset: EpisodeDataset) -> np.ndarray:
    return fingerprints(split_hashes(dataset, "train"))


def test_a_planted_duplicate_is_named_and_counted_turned_or_not(leaking: EpisodeDataset) -> None:
    found = check_leakage(leaking, "test", set(), trained_on(leaking))
    assert (found.examples, found.known, found.duplicates, found.turned) == (14, 8, 2, 1)
    assert found.class_names == ("d", "e")
    by_name = {entry.name: entry.digest for entry in leaking.manifest.classes}
    assert found.class_digests == (by_name["d"], by_name["e"])
    assert found.shown == ("d/4.png", "e/4.png (turned 90°)")
    assert "2 of 14 test examples were trained on (1 of them turned)" in found.finding
    assert "2 classes are left out" in found.finding


def test_each_turn_of_a_training_picture_counts(clean: EpisodeDataset) -> None:
    """The hashes are made here, from the pixels, for every turn."""
    first = clean.manifest.of_split("test")[0]
    pixels = clean.examples[int(clean.class_offset[first.id])].numpy()
    for turn in range(4):
        seen = fingerprints([hashlib.sha256(np.rot90(pixels, turn, axes=(1, 2)).tobytes()).digest()])
        found = check_leakage(clean, "test", set(), seen)
        assert (found.duplicates, found.turned) == (1, int(turn > 0))
        assert found.shown[0].endswith(f"(turned {90 * turn}°)" if turn else ".png")


def test_a_clean_dataset_leaves_everything_in_and_says_what_was_looked_at(clean: EpisodeDataset) -> None:
    found = check_leakage(
        clean, "test", {entry.digest for entry in clean.manifest.of_split("train")}, trained_on(clean)
    )
    assert found.class_digests == ()
    assert found.finding == "leakage: none of 12 test examples is among 8 training examples, turned or not"


def test_a_model_that_does_not_know_its_images_is_not_called_clean(clean: EpisodeDataset) -> None:
    assert "unknown" in check_leakage(clean, "test", set(), NOTHING).finding


def test_a_class_that_was_trained_on_whole_is_known_by_its_digest(clean: EpisodeDataset) -> None:
    entry = clean.manifest.of_split("test")[1]
    found = check_leakage(clean, "test", {entry.digest, "of another dataset"}, NOTHING)
    assert (found.class_names, found.duplicates) == ((entry.name,), 0)


def test_vectors_are_not_turned(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"class{number}" for number in range(6) for _ in range(4)]
    values = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    values[3] = values[23]  # class0 and class5 share one
    column = pa.array(values.tolist(), pa.list_(pa.float32(), 5))
    pq.write_table(pa.table({"label": names, "features": column}), tmp_path / "vectors.parquet")
    split = tuple((f"class{n}", "train" if n < 3 else "test") for n in range(6))
    build_dataset(str(tmp_path / "vectors.parquet"), tmp_path / "dataset", BuildOptions(split_file=split), workers=1)
    dataset = EpisodeDataset.open(tmp_path / "dataset")
    found = check_leakage(dataset, "test", set(), trained_on(dataset))
    assert (found.class_names, found.duplicates, found.turned) == (("class5",), 1, 0)
