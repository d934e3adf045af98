import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.errors import MetalearnError


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


@pytest.mark.parametrize(("first", "second"), [("image", "features"), ("features", "image")])
def test_images_and_features_in_one_folder_are_refused(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    values: dict[str, object] = {"image": png(0), "features": [1.0, 2.0]}
    for name, column in (("1.parquet", first), ("2.parquet", second)):
        write(folder / name, [{column: values[column], "label": label} for label in range(3)])
    with pytest.raises(MetalearnError, match=f"2.parquet: no column '{first}', as 1.parquet beside it has"):
        build_dataset(str(folder), tmp_path / "out")
