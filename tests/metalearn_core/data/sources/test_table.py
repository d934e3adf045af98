import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.decode import decode_image
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.data.parts import build_part
from metalearn_core.data.sources.table import TableSource
from metalearn_core.errors import MetalearnError, one_line


def png(seed: int) -> bytes:
    import io

    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def image_rows(classes: int = 5, count: int = 4) -> list[dict[str, object]]:
    return [{"image": png(10 * c + k), "label": c, "id": f"{c}/{k}"} for c in range(classes) for k in range(count)]


def write(path: Path, rows: list[dict[str, object]], schema: pa.Schema | None = None, **options: object) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return str(path)


def test_the_order_and_grouping_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = image_rows()
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    sorted_digest = build_dataset(write(tmp_path / "a.parquet", rows), tmp_path / "a").digest
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "1.parquet", shuffled[:7], row_group_size=2)
    write(folder / "2.parquet", shuffled[7:])
    assert build_dataset(str(folder), tmp_path / "b", workers=2).digest == sorted_digest


def test_hugging_face_columns_and_class_names_are_understood(tmp_path: Path) -> None:
    names = ["ant", "bee", "cow", "dog", "eel"]
    metadata = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps(metadata)},
    )
    rows = [{"image": {"bytes": row["image"], "path": None}, "label": row["label"]} for row in image_rows()]
    manifest = build_dataset(write(tmp_path / "h.parquet", rows, schema), tmp_path / "out")
    assert sorted(entry.name for entry in manifest.classes) == names


def test_features_become_float_vectors(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    rows = [{"features": list(map(float, v)), "class": "abc"[i % 3], "id": str(i)} for i, v in enumerate(values)]
    manifest = build_dataset(write(tmp_path / "f.parquet", rows), tmp_path / "out")
    assert (manifest.spec.modality, manifest.spec.example_shape, manifest.spec.dtype) == ("vector", (6,), "float32")
    assert {entry.rotations for entry in manifest.classes} == {(0,)}
    dataset = EpisodeDataset.open(tmp_path / "out")
    order = [int(key) for key in dataset.example_ids(range(30))]
    assert np.array_equal(dataset.examples.numpy(), values[order])
    train = values[[i for i in range(30) if "abc"[i % 3] == manifest.of_split("train")[0].name]].astype(np.float64)
    assert np.allclose(manifest.spec.mean, train.mean(0))
    assert np.allclose(manifest.spec.std, train.std(0))


def test_rows_that_do_not_fit_are_unreadable(tmp_path: Path) -> None:
    rows = [{"features": [float(i), 1.0], "class": "ab"[i % 2]} for i in range(20)]
    rows += [{"features": [1.0], "class": "a"}, {"features": [float("nan"), 1.0], "class": "b"}]
    rows += [{"features": None, "class": "b"}]
    manifest = build_dataset(write(tmp_path / "f.parquet", rows), tmp_path / "out", BuildOptions(max_unreadable=0.2))
    reasons = sorted(f"{bad.path}: {bad.reason}" for bad in manifest.unreadable)
    assert reasons == [
        "f.parquet#20: 1 features, most rows have 2",
        "f.parquet#21: has features that are missing or not finite",
        "f.parquet#22: has no features",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"picture": b"", "label": 1}], "no column 'image' or 'features': found picture, label"),
        ([{"image": b"", "kind": 1}], "no column 'class' or 'label': found image, kind"),
        ([{"image": "a.png", "label": 1}], "column 'image' is string, expected the bytes"),
        ([{"features": 1.0, "label": 1}], "column 'features' is double, expected lists"),
        ([{"features": ["a"], "label": 1}], "column 'features' is list<.*string>, expected lists of numbers"),
        ([{"image": png(0), "label": [1]}], "column 'label' is list<.*>, expected text or whole numbers"),
        ([{"image": png(0), "class": 1.5}], "column 'class' is double, expected text or whole numbers"),
        ([{"image": png(0), "label": 1}, {"image": png(0), "label": None}], "row 1 has no label"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(MetalearnError, match=message):
        build_dataset(write(tmp_path / "t.parquet", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    columns = [pa.array([png(0)]), pa.array([png(1)]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "image", "label"]), tmp_path / "t.parquet")
    with pytest.raises(MetalearnError, match="2 columns are named 'image'"):
        build_dataset(str(tmp_path / "t.parquet"), tmp_path / "out")


def test_a_file_that_is_no_parquet_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(MetalearnError, match="is no Parquet file"):
        build_dataset(str(tmp_path / "t.parquet"), tmp_path / "out")


def test_large_whole_numbers_are_features_like_others(tmp_path: Path) -> None:
    rows = [{"features": [2**24 + 1, i], "class": "abc"[i % 3], "id": str(i)} for i in range(30)]
    build_dataset(write(tmp_path / "f.parquet", rows), tmp_path / "out")
    assert EpisodeDataset.open(tmp_path / "out").examples[0, 0] == 2**24


def test_a_constant_feature_is_not_blown_up(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1000, 0.01, size=60).astype(np.float32)
    rows = [{"features": [0.1, float(value)], "class": "abc"[i % 3], "id": str(i)} for i, value in enumerate(values)]
    manifest = build_dataset(write(tmp_path / "f.parquet", rows), tmp_path / "out")
    dataset = EpisodeDataset.open(tmp_path / "out")
    train = dataset.examples[: sum(entry.count for entry in manifest.of_split("train"))].double()
    assert manifest.spec.std[0] == 1
    assert manifest.spec.std[1] == pytest.approx(train[:, 1].std(correction=0).item(), rel=1e-9)


def hugging_face(names: list[str]) -> pa.Schema:
    """Return a schema with class names for whole-numbered labels."""
    metadata = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return pa.schema(
        [("image", pa.binary()), ("label", pa.int64()), ("id", pa.string())],
        metadata={"huggingface": json.dumps(metadata)},
    )


def test_each_file_has_its_own_class_names(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    names, rows = ["ant", "bee", "cow", "dog", "eel"], image_rows()
    reversed_rows = [{**row, "label": 4 - int(str(row["label"]))} for row in rows]
    whole = build_dataset(write(tmp_path / "one.parquet", rows, hugging_face(names)), tmp_path / "whole")
    write(folder / "1.parquet", rows[::2], hugging_face(names))
    write(folder / "2.parquet", reversed_rows[1::2], hugging_face(names[::-1]))
    assert build_dataset(str(folder), tmp_path / "out").digest == whole.digest


def test_a_file_without_class_names_beside_one_that_has_them_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "1.parquet", image_rows(), hugging_face(["ant", "bee", "cow", "dog", "eel"]))
    write(folder / "2.parquet", image_rows())
    with pytest.raises(MetalearnError, match=r"2.parquet: has no names for its classes, as 1.parquet beside it has"):
        build_dataset(str(folder), tmp_path / "out")


def test_a_number_without_a_class_name_is_no_label(tmp_path: Path) -> None:
    rows = [*image_rows(), {"image": png(99), "label": -1, "id": "x"}]
    with pytest.raises(MetalearnError, match="row 20 has no label: -1 is none of its 5 names"):
        build_dataset(write(tmp_path / "t.parquet", rows, hugging_face(list("abcde"))), tmp_path / "named")
    plain = build_dataset(write(tmp_path / "p.parquet", rows), tmp_path / "plain", BuildOptions(min_examples=1))
    assert "-1" in {entry.name for entry in plain.classes}


def test_rows_of_empty_features_are_unreadable(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"features": [], "class": "ab"[i % 2]} for i in range(6)]
    schema = pa.schema([("features", pa.list_(pa.float32())), ("class", pa.string())])
    with pytest.raises(MetalearnError, match=r"6 of 6 examples .* the first: f.parquet#0: has no features"):
        build_dataset(write(tmp_path / "f.parquet", rows, schema), tmp_path / "out")
    rows += [{"features": [float(i), 1.0], "class": "ab"[i % 2]} for i in range(4)]
    built = build_dataset(write(tmp_path / "g.parquet", rows, schema), tmp_path / "o", BuildOptions(max_unreadable=0.9))
    assert built.spec.example_shape == (2,)


def test_text_that_is_not_utf_8_is_named_by_its_row(tmp_path: Path) -> None:
    label = pa.array([b"a", b"b\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [png(k) for k in range(3)], "class": label}), tmp_path / "t.parquet")
    with pytest.raises(MetalearnError, match=r"t.parquet: row 1 has text that is not UTF-8"):
        build_dataset(str(tmp_path / "t.parquet"), tmp_path / "out")


def test_a_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    rows = [{"features": [float(i)] * 50, "class": "abc"[i % 3]} for i in range(900)]
    path = Path(write(tmp_path / "t.parquet", rows, compression="snappy", use_dictionary=False))
    content = bytearray(path.read_bytes())
    content[200:1200] = b"\xff" * 1000
    path.write_bytes(content)
    with pytest.raises(MetalearnError, match=r"source \S*t.parquet: is damaged near row \d+: \w+"):
        build_dataset(str(path), tmp_path / "out")


def test_a_file_that_may_not_be_read_is_named_with_the_systems_reason(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError) as caught:
        build_dataset(str(folder), tmp_path / "out")
    assert one_line(caught.value) == f"{folder / 'gone.parquet'}: no such file or directory"


@pytest.mark.parametrize(("first", "second"), [("image", "features"), ("features", "image")])
def test_images_and_features_in_one_folder_are_refused(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    values: dict[str, object] = {"image": png(0), "features": [1.0, 2.0]}
    for name, column in (("1.parquet", first), ("2.parquet", second)):
        write(folder / name, [{column: values[column], "label": label} for label in range(3)])
    with pytest.raises(MetalearnError, match=f"2.parquet: no column '{first}', as 1.parquet beside it has"):
        build_dataset(str(folder), tmp_path / "out")


def test_only_what_is_wanted_is_copied(tmp_path: Path) -> None:
    rows = image_rows()
    source = TableSource("t", Path(write(tmp_path / "t.parquet", rows[::-1], row_group_size=3)))
    classes = {found.name: found for found in source.classes(tmp_path)}
    source.bring([classes["1"], classes["3"]])
    own = [row for row in rows if row["label"] in {1, 3}]
    assert (tmp_path / "rows").stat().st_size == sum(len(row["image"]) for row in own)
    loader = source.loader(9, "grey")
    wanted = {row["id"]: decode_image(BytesIO(row["image"]), 9, "grey") for row in own}
    for found in (classes["1"], classes["3"]):
        assert all(np.array_equal(loader(item), wanted[item.key]) for item in found.items)


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "t.parquet", image_rows(), row_group_size=4, compression="none"))
    column = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    options = BuildOptions(color="grey")
    assert build_part(str(path), tmp_path / "odd", options, 1, 2).total == 8
    with pytest.raises(MetalearnError, match="is damaged near row 8"):
        build_part(str(path), tmp_path / "even", options, 0, 2)


@pytest.mark.parametrize(
    "replace",
    [
        lambda path: write(path, image_rows(count=3)),
        lambda path: write(path, image_rows(count=5)),
        lambda path: write(path, image_rows(count=5), row_group_size=2),
        lambda path: write(path, [{"features": [1.0], "label": 1}]),
        lambda path: path.write_bytes(b"nothing of the kind"),
    ],
    ids=["fewer rows", "more rows", "more row groups", "another column", "no Parquet"],
)
def test_a_file_that_changes_between_its_labels_and_its_images_is_told(
    tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    path = tmp_path / "t.parquet"
    source = TableSource("t", Path(write(path, image_rows())))
    classes = source.classes(tmp_path)
    replace(path)
    with pytest.raises(MetalearnError, match="was changed while it was read"):
        source.bring(classes)


def test_rows_of_a_later_file_alone_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = image_rows()
    write(folder / "1.parquet", rows[:11])
    write(folder / "2.parquet", rows[11:])
    source = TableSource("t", folder)
    wanted = [found for found in source.classes(tmp_path) if found.name in {"3", "4"}]
    source.bring(wanted)
    loader = source.loader(9, "grey")
    pixels = {row["id"]: decode_image(BytesIO(row["image"]), 9, "grey") for row in rows[12:]}
    found = {item.key: loader(item) for entry in wanted for item in entry.items}
    assert found.keys() == pixels.keys()
    assert all(np.array_equal(found[key], pixels[key]) for key in pixels)


PEAK = """
import re, sys
from pathlib import Path
from metalearn_core.data.sources.table import TableSource

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

file, scratch = map(Path, sys.argv[1:])
source = TableSource("t", file)
before = peak()
source.bring(source.classes(scratch))
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_size_of_a_row_group(tmp_path: Path) -> None:
    """A row group of 200 MB, read by a process that takes less than half of it."""
    content = [np.random.default_rng(0).bytes(20_000)] * 10_000
    table = pa.table({"image": content, "class": ["a", "b"] * 5_000})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=["class"])
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 1
    command = [sys.executable, "-c", PEAK, str(tmp_path / "t.parquet"), str(tmp_path)]
    kibibytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "rows").stat().st_size == 200_000_000
    assert kibibytes * 1024 < 100_000_000


def held(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open or mapped, those that were removed among them."""
    paths = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    paths += Path("/proc/self/maps").read_text().splitlines()
    return [path for path in paths if str(folder) in path]


def test_nothing_holds_the_scratch_files_of_a_build_that_is_done(tmp_path: Path) -> None:
    source, options = write(tmp_path / "t.parquet", image_rows()), BuildOptions(color="grey")
    build_dataset(source, tmp_path / "whole", workers=1)
    assert held(tmp_path) == []
    build_part(source, tmp_path / "part", options, 0, 2, workers=1)
    assert held(tmp_path) == []


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.large_list(pa.float64()), pa.list_(pa.float16())])
def test_lists_of_every_kind_are_features(tmp_path: Path, kind: pa.DataType) -> None:
    rows: list[dict[str, object]] = [
        {"features": [np.float16(i), np.float16(0.5)], "class": "ab"[i % 2], "id": str(i)} for i in range(8)
    ]
    schema = pa.schema([("features", kind), ("class", pa.string()), ("id", pa.string())])
    build_dataset(write(tmp_path / "f.parquet", rows, schema), tmp_path / "out")
    dataset = EpisodeDataset.open(tmp_path / "out")
    order = [float(key) for key in dataset.example_ids(range(8))]
    assert dataset.examples.tolist() == [[value, 0.5] for value in order]


def test_rows_without_an_image_are_unreadable(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64()), ("id", pa.string())])
    rows: list[dict[str, object]] = [{**row, "image": {"bytes": row["image"], "path": None}} for row in image_rows()]
    rows += [{"image": None, "label": 0, "id": "a"}, {"image": {"bytes": None, "path": "x.png"}, "label": 1, "id": "b"}]
    manifest = build_dataset(
        write(tmp_path / "t.parquet", rows, schema), tmp_path / "out", BuildOptions(max_unreadable=0.5)
    )
    assert [(bad.path, bad.reason) for bad in manifest.unreadable] == [
        ("a", "has no image bytes"),
        ("b", "has no image bytes"),
    ]
