from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.leakage import check_leakage
from metalearn_core.data.manifest import BuildOptions, Split
from metalearn_core.data.subset import class_sketches, only_domain, split_hashes, without_classes
from metalearn_core.errors import UsageError

SPLITS: dict[str, Split] = {"a": "train", "b": "train", "c": "validation", "d": "test"}


def build(folder: Path, splits: dict[str, Split], pictures: int) -> EpisodeDataset:
    """Build a dataset of classes whose n-th picture is always the same."""
    for name in splits:
        (folder / "source" / name).mkdir(parents=True)
        for number in range(pictures):
            pixels = np.random.default_rng([number, *name.encode()]).integers(0, 256, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "source" / name / f"{number}.png")
    options = BuildOptions(image_size=8, split_file=tuple(splits.items()), rotations="none")
    build_dataset(str(folder / "source"), folder / "dataset", options, workers=1)
    return EpisodeDataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return build(tmp_path_factory.mktemp("before"), SPLITS, 3)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """The same classes with a picture more each, of which one trained class is a test class now."""
    return build(tmp_path_factory.mktemp("after"), {"a": "train", "b": "test", "c": "train", "d": "test"}, 4)


def test_a_class_that_gained_a_picture_since_training_is_known_by_its_others(
    trained_on: EpisodeDataset, grown: EpisodeDataset
) -> None:
    digests = {entry.digest for entry in trained_on.manifest.of_split("train")}
    assert not digests & {entry.digest for entry in grown.manifest.classes}
    seen = check_leakage(grown, "test", digests, fingerprints(split_hashes(trained_on, "train")))
    assert seen.class_names == ("b",)
    left = without_classes(grown, "test", seen.class_digests)
    assert [entry.name for entry in left.manifest.of_split("test")] == ["d"]


def test_sketches_of_classes_mostly_survive_a_picture_more(tmp_path: Path) -> None:
    splits: dict[str, Split] = {f"class{number}": "test" for number in range(20)}
    before, after = (build(tmp_path / str(pictures), splits, pictures) for pictures in (9, 10))
    assert not {e.digest for e in before.manifest.classes} & {e.digest for e in after.manifest.classes}
    kept = set(class_sketches(before, "test")) & set(class_sketches(after, "test"))
    assert len(class_sketches(after, "test")) == 20
    assert 10 <= len(kept) <= 20
    fewer = without_classes(after, "test", {after.manifest.classes[0].digest})
    assert class_sketches(fewer, "test") == class_sketches(after, "test")[1:]


def test_the_hashes_of_a_split_are_those_of_its_examples_also_where_classes_were_left_out(
    grown: EpisodeDataset,
) -> None:
    first, second = grown.manifest.of_split("test")
    whole = split_hashes(grown, "test")
    assert len(set(whole)) == first.count + second.count
    assert split_hashes(without_classes(grown, "test", {first.digest}), "test") == whole[first.count :]


def test_a_domain_alone_keeps_its_classes_their_splits_and_their_pictures(tmp_path: Path) -> None:
    splits: dict[str, Split] = {
        f"{domain}/{split}{n}": split for domain in "xy" for split in ("train", "test") for n in range(2)
    }
    whole = build(tmp_path, splits, 3)
    part = only_domain(whole, "y")
    assert {entry.name: entry.split for entry in part.manifest.classes} == {
        name: split for name, split in splits.items() if name.startswith("y/")
    }
    assert part.spec.train_classes == 2
    for entry in part.manifest.classes:
        before = next(one for one in whole.manifest.classes if one.name == entry.name)
        rows = [int(one.class_offset[e.id]) for one, e in ((part, entry), (whole, before))]
        assert rows[0] == rows[1]
    assert part.digest not in {whole.digest, only_domain(whole, "x").digest}
    with pytest.raises(UsageError, match="domain"):
        only_domain(whole, "z")
