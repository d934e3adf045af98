"""A build that is shared out makes the dataset of a build at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalearn_core.data.build import build_dataset, decode_classes
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.data.parts import build_part, merge_parts
from metalearn_core.errors import MetalearnError, UsageError

OPTIONS = BuildOptions(image_size=12, color="grey")


def parts_of(source: Path, folder: Path, of: int, options: BuildOptions = OPTIONS) -> list[Path]:
    for number in range(of):
        build_part(str(source), folder / f"part{number}", options, number, of, workers=1)
    return [folder / f"part{number}" for number in range(of)]


@pytest.fixture(scope="module")
def source(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of which one has a file that cannot be read, and one no file that can."""
    folder = tmp_path_factory.mktemp("parts") / "source"
    shutil.copytree(image_folder, folder)
    (folder / "domain1" / "class2" / "broken.png").write_bytes(b"nothing")
    (folder / "domain3" / "hopeless").mkdir()
    (folder / "domain3" / "hopeless" / "broken.png").write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize("of", [1, 3, 40])
def test_merged_parts_are_the_dataset_of_a_build_at_once(source: Path, tmp_path: Path, of: int) -> None:
    whole = build_dataset(str(source), tmp_path / "whole", OPTIONS, workers=1)
    merged = merge_parts(parts_of(source, tmp_path, of)[::-1], tmp_path / "merged")
    assert merged == whole
    one, other = (EpisodeDataset.open(tmp_path / name) for name in ("whole", "merged"))
    assert (one.examples == other.examples).all()
    rows = range(len(one.examples))
    assert one.example_ids(rows) == other.example_ids(rows)


def test_merged_parts_of_vectors_are_the_dataset_of_a_build_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)).tolist()
    rows = {"features": [*values, [1.0], [2.0]], "class": [f"c{i % 8}" for i in range(42)]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    for name, options in (("auto", BuildOptions()), ("rgb", BuildOptions(color="rgb"))):
        whole = build_dataset(str(tmp_path / "x.parquet"), tmp_path / name / "whole", options)
        parts = parts_of(tmp_path / "x.parquet", tmp_path / name, 3, options)
        assert merge_parts(parts, tmp_path / name / "merged") == whole


def test_parts_of_equal_copies_make_one_dataset(source: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(source, tmp_path / name / "source")) for name in ("one", "other")]
    parts = [tmp_path / f"part{number}" for number in range(2)]
    for number, copy in enumerate(copies):
        build_part(str(copy), parts[number], OPTIONS, number, 2, workers=1)
    assert merge_parts(parts, tmp_path / "merged").digest == build_dataset(str(source), tmp_path / "o", OPTIONS).digest


def test_parts_of_two_states_of_a_source_are_refused(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    build_part(str(copy), tmp_path / "part0", OPTIONS, 0, 2, workers=1)
    image = next(copy.rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"more")
    build_part(str(copy), tmp_path / "part1", OPTIONS, 1, 2, workers=1)
    with pytest.raises(UsageError, match="its fingerprint is another"):
        merge_parts([tmp_path / "part0", tmp_path / "part1"], tmp_path / "out")


def test_a_source_that_changes_while_it_is_read_makes_no_part(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    image = next(copy.rglob("*.png"))

    def interrupted(decode: Callable[..., Any]) -> Callable[..., Any]:
        def decode_then_write(*arguments: Any) -> Any:
            found = decode(*arguments)
            image.write_bytes(image.read_bytes())
            return found

        return decode_then_write

    monkeypatch.setattr("metalearn_core.data.parts.decode_classes", interrupted(decode_classes))
    with pytest.raises(MetalearnError, match="was changed while it was read"):
        build_part(str(copy), tmp_path / "part", OPTIONS, 0, 2, workers=1)
    assert not (tmp_path / "part").exists()


def test_an_earlier_build_keeps_its_splits_in_a_merge(source: Path, dataset_folder: Path, tmp_path: Path) -> None:
    whole = build_dataset(str(source), tmp_path / "whole", OPTIONS, split_from=dataset_folder)
    assert merge_parts(parts_of(source, tmp_path, 2), tmp_path / "merged", split_from=dataset_folder) == whole


def test_parts_that_do_not_make_one_build_are_refused(source: Path, tmp_path: Path) -> None:
    first, second, third = parts_of(source, tmp_path, 3)
    with pytest.raises(UsageError, match="part 2/3 is missing; got 1/3, 3/3"):
        merge_parts([first, third], tmp_path / "out")
    with pytest.raises(UsageError, match="a part is given twice"):
        merge_parts([first, second, second, third], tmp_path / "out")
    (other,) = parts_of(source, tmp_path / "other", 1)
    with pytest.raises(UsageError, match="belongs to another build"):
        merge_parts([first, second, other], tmp_path / "out")
    sixteen = BuildOptions(image_size=16, color="grey")
    build_part(str(source), tmp_path / "large", sixteen, 1, 3, workers=1)
    with pytest.raises(UsageError, match="its options is another"):
        merge_parts([first, tmp_path / "large", third], tmp_path / "out")
    with pytest.raises(UsageError, match="there are no parts"):
        merge_parts([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_never_read_as_good(source: Path, tmp_path: Path) -> None:
    first, second = parts_of(source, tmp_path, 2)
    shard = next(second.glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(MetalearnError, match="is damaged"):
        merge_parts([first, second], tmp_path / "out")
    described = json.loads((first / "part.json").read_text())
    del described["classes"]
    (first / "part.json").write_text(json.dumps(described))
    with pytest.raises(MetalearnError, match=r"part\.json is damaged: classes: field required"):
        merge_parts([first, second], tmp_path / "out")
    with pytest.raises(MetalearnError, match="there is no"):
        merge_parts([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_unreadable_files_stop_the_merge_not_a_part(source: Path, tmp_path: Path) -> None:
    strict = BuildOptions(image_size=12, color="grey", max_unreadable=0.001)
    with pytest.raises(MetalearnError, match="2 of 194 examples cannot be read"):
        merge_parts(parts_of(source, tmp_path, 2, strict), tmp_path / "out")


def test_the_colour_is_not_guessed_from_a_part(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a part of a build does not see every image"):
        build_part(str(source), tmp_path / "part", BuildOptions(image_size=12), 0, 2)
    assert not (tmp_path / "part").exists()


def test_glyphs_and_their_rasteriser_come_through(tmp_path: Path) -> None:
    part = build_part("glyphs", tmp_path / "part", BuildOptions(image_size=8), 0, 400, workers=1)
    assert part.rasteriser
    assert part.options.color == "grey"
    assert 1 <= len(part.classes) <= 3
