import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import BuildOptions, Split
from metalearn_core.data.quality import Check, QualityReport, judge, validate_dataset, write_quality
from metalearn_core.data.tables import dataset_tables

ROOT = Path(__file__).parents[3]
SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test"}
SHAPES: dict[Split, EpisodeShape] = {split: EpisodeShape(2, 1, 2) for split in SPLITS.values()}


def pictures(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 12, 12), dtype=np.uint8))


def good_classes() -> dict[str, list[np.ndarray]]:
    """Nine classes of four different pictures, three a split; a class is named after its split."""
    names = [f"{split}_{number}" for split in SPLITS for number in range(3)]
    return {name: pictures(seed, 4) for seed, name in enumerate(names)}


def build(folder: Path, classes: Mapping[str, Sequence[np.ndarray]], broken_files: int = 0) -> EpisodeDataset:
    for name, images in classes.items():
        (folder / "source" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / "source" / name / f"{number}.png")
    for number in range(broken_files):
        (folder / "source" / "train_0" / f"broken{number}.png").write_bytes(b"no picture")
    pairs = tuple((name, SPLITS[name.split("_")[0]]) for name in classes)
    options = BuildOptions(image_size=12, split_file=pairs, rotations="none", max_unreadable=0.5)
    build_dataset(str(folder / "source"), folder / "dataset", options, workers=1)
    return EpisodeDataset.open(folder / "dataset")


def named(report: QualityReport, name: str) -> Check:
    (check,) = [check for check in report.checks if check.name == name]
    return check


def failing(report: QualityReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_a_good_dataset_passes_every_check(tmp_path: Path) -> None:
    report = validate_dataset(build(tmp_path, good_classes()), SHAPES)
    assert report.passed
    assert failing(report) == set()
    assert len(report.checks) >= 12
    assert [(split.split, split.classes, split.examples) for split in report.splits] == [
        ("train", 3, 12),
        ("validation", 3, 12),
        ("test", 3, 12),
    ]


def test_too_few_classes_for_the_way_name_the_split(tmp_path: Path) -> None:
    report = validate_dataset(build(tmp_path, good_classes()), {**SHAPES, "test": EpisodeShape(5, 1, 2)})
    assert not report.passed
    check = named(report, "enough classes")
    assert check.where == ("test",)
    assert "test (3)" in check.observed
    assert "test 5" in check.expected


def test_too_few_examples_for_the_shape_name_the_classes(tmp_path: Path) -> None:
    classes = good_classes()
    classes["validation_1"] = classes["validation_1"][:2]
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert failing(report) == {"enough examples"}
    assert named(report, "enough examples").where == ("validation/validation_1",)
    assert not report.passed


def test_a_split_that_is_asked_for_nothing_may_be_small(tmp_path: Path) -> None:
    classes = good_classes()
    classes["validation_1"] = classes["validation_1"][:2]
    report = validate_dataset(build(tmp_path, classes), {"train": EpisodeShape(3, 1, 3)})
    assert report.passed


def test_a_class_of_identical_pictures_is_named(tmp_path: Path) -> None:
    classes = good_classes()
    classes["train_1"] = [classes["train_1"][0]] * 4
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert not report.passed
    assert failing(report) == {"no class of identical examples", "no example is repeated"}
    assert named(report, "no class of identical examples").where == ("train/train_1",)


def test_a_picture_in_two_classes_of_one_split_is_a_warning(tmp_path: Path) -> None:
    classes = good_classes()
    classes["train_0"][0] = classes["train_2"][3]
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert report.passed
    assert failing(report) == {"classes share no example"}
    assert set(named(report, "classes share no example").where) == {"train/train_0", "train/train_2"}


def test_a_picture_in_two_splits_blocks(tmp_path: Path) -> None:
    classes = good_classes()
    classes["train_0"][0] = classes["test_2"][3]
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert not report.passed
    assert set(named(report, "splits share no example").where) == {"train/train_0", "test/test_2"}


def test_a_class_whose_copy_is_in_another_split_blocks(tmp_path: Path) -> None:
    classes = good_classes()
    classes["test_0"] = classes["train_0"]
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert set(named(report, "splits share no class content").where) == {"train/train_0", "test/test_0"}
    assert not report.passed


def test_blank_pictures_and_faint_ones_are_warnings(tmp_path: Path) -> None:
    classes = good_classes()
    classes["train_0"][1] = np.full((12, 12), 255, np.uint8)
    classes["test_1"] = [image // 64 + 100 for image in classes["test_1"]]
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert report.passed
    assert failing(report) == {"no blank pictures", "pictures have contrast"}
    assert named(report, "no blank pictures").where == ("train/train_0",)
    assert named(report, "pictures have contrast").where == ("test/test_1",)


def test_classes_of_very_different_size_are_a_warning(tmp_path: Path) -> None:
    classes = good_classes()
    classes["train_0"] = pictures(99, 45)
    report = validate_dataset(build(tmp_path, classes), SHAPES)
    assert report.passed
    assert failing(report) == {"classes are balanced"}


def test_the_share_of_unreadable_files_is_judged_by_the_build_options(tmp_path: Path) -> None:
    dataset = build(tmp_path, good_classes(), broken_files=4)
    assert validate_dataset(dataset, SHAPES).passed
    strict = dataset.manifest.model_copy(
        update={"options": dataset.manifest.options.model_copy(update={"max_unreadable": 0.05})}
    )
    report = judge(dataset_tables(dataset, SHAPES), strict, SHAPES)
    assert failing(report) == {"files could be read"}
    assert "0.1" in named(report, "files could be read").observed


def test_repeated_ids_and_a_class_in_two_splits_block(tmp_path: Path) -> None:
    dataset = build(tmp_path, good_classes())
    tables = dataset_tables(dataset, SHAPES)
    tables.dataset["repeated_ids"] = 2
    tables.classes.loc[tables.classes["name"] == "test_0", "splits_of_name"] = 2
    report = judge(tables, dataset.manifest, SHAPES)
    assert failing(report) == {"example ids are unique", "splits share no class name"}
    assert not report.passed


def test_a_check_that_broke_is_told_apart_from_bad_data(tmp_path: Path) -> None:
    dataset = build(tmp_path, good_classes())
    tables = dataset_tables(dataset, SHAPES)
    del tables.classes["leaked"]
    report = judge(tables, dataset.manifest, SHAPES)
    check = named(report, "splits share no example")
    assert check.broken is not None and "leaked" in check.broken
    assert not check.passed
    assert not report.passed
    assert all(other.broken is None for other in report.checks if other.name != check.name)


def test_statistics_of_vectors_see_values_that_are_not_finite(tmp_path: Path) -> None:
    import torch

    dataset = build(tmp_path, good_classes())
    spec = dataset.spec.model_copy(
        update={"modality": "vector", "dtype": "float32", "example_shape": (3,), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    )
    values = torch.randn(36, 3)
    values[5, 1], values[13, 2] = float("nan"), 1e6
    vectors = EpisodeDataset(dataset.folder, dataset.manifest.model_copy(update={"spec": spec}), values)
    report = validate_dataset(vectors, SHAPES)
    assert failing(report) == {"values are finite", "values are in range"}
    assert named(report, "values are finite").blocking
    classes = [f"{entry.split}/{entry.name}" for entry in dataset.manifest.classes]
    assert named(report, "values are finite").where == (classes[1],)
    assert named(report, "values are in range").where == (classes[3],)


def test_the_report_the_suite_and_the_page_are_written(tmp_path: Path) -> None:
    classes = good_classes()
    classes["test_<b>x"] = [classes["test_0"][0]] * 4
    dataset = build(tmp_path, classes)
    report = validate_dataset(dataset, SHAPES)
    write_quality(report, dataset.manifest, tmp_path / "quality")
    assert QualityReport.model_validate(json.loads((tmp_path / "quality" / "quality.json").read_text())) == report
    suites = json.loads((tmp_path / "quality" / "suite.json").read_text())
    asked = [expectation for suite in suites.values() for expectation in suite["expectations"]]
    assert {expectation["meta"]["check"] for expectation in asked} == {check.name for check in report.checks}
    page = (tmp_path / "quality" / "quality.html").read_text()
    assert dataset.digest in page
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    assert not re.search(r"(src|href)\s*=|https?://|url\(|@import|<script", page)
    assert "Traceback" not in (tmp_path / "quality" / "quality.json").read_text()


def test_validation_is_silent_and_talks_to_nobody(tmp_path: Path) -> None:
    build(tmp_path, good_classes())
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): sys.stderr.write('network'); raise OSError\n"
        "socket.socket.connect = refuse\n"
        "from metalearn_core.data.dataset import EpisodeDataset\n"
        "from metalearn_core.data.episodes import EpisodeShape\n"
        "from metalearn_core.data.quality import validate_dataset\n"
        "assert 'great_expectations' not in sys.modules\n"
        "assert validate_dataset(EpisodeDataset.open(sys.argv[1]), {'train': EpisodeShape(2, 1, 2)}).passed\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GX_ANALYTICS_ENABLED"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "dataset")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
