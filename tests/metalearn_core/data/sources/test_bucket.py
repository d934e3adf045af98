"""A source in a bucket is the same source as the files that it holds, and nothing of it is copied twice."""

from pathlib import Path

import pytest

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, read_manifest
from metalearn_core.data.parts import build_part
from metalearn_core.data.sources.open import open_source
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.data import build_at, build_episodes, build_options, decode_part
from metalearn_core.storage.mirror import local_copy
from metalearn_core.storage.objects import Prefix
from metalearn_core.storage.place import Place

OPTIONS = BuildOptions(image_size=12, color="grey")


@pytest.fixture
def images(bucket: str, image_folder: Path) -> str:
    files = {f"deep/{path.relative_to(image_folder)}": path for path in image_folder.rglob("*.png")}
    prefix = Prefix.parse(f"{bucket}/source")
    prefix.upload(files)
    prefix.write("deep/notes.txt", b"no image")
    prefix.write("deep/.hidden/x.png", b"no image")
    return f"{bucket}/source"


def test_images_in_a_bucket_make_the_dataset_of_the_folder(image_folder: Path, images: str, tmp_path: Path) -> None:
    here = build_dataset(str(image_folder), tmp_path / "here", OPTIONS)
    there = build_dataset(images, tmp_path / "there", OPTIONS)
    assert there.digest == here.digest
    assert there.source == images


def test_a_part_copies_its_own_classes_alone(images: str, tmp_path: Path) -> None:
    build_part(images, tmp_path / "part", OPTIONS, 1, 4)
    copied = list(local_copy(Prefix.parse(images)).rglob("*.png"))
    assert len(copied) == 6 * 8
    assert len({path.parent for path in copied}) == 6


def test_another_image_is_another_fingerprint_and_the_same_images_are_the_same(images: str) -> None:
    before = open_source(images).fingerprint()
    assert open_source(images).fingerprint() == before
    Prefix.parse(images).write("deep/domain0/class0/new.png", b"x")
    assert open_source(images).fingerprint() != before


def test_nothing_at_an_address_is_one_line(bucket: str) -> None:
    with pytest.raises(MetalearnError, match=r"source s3://.*/empty: there is nothing at this address"):
        open_source(f"{bucket}/empty")


def test_parquet_in_a_bucket_is_read_by_file_and_by_prefix(bucket: str, tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    rows = {"features": list(random.normal(size=(40, 3)).tolist()), "class": [f"c{i % 8}" for i in range(40)]}
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "table" / "x.parquet")
    Prefix.parse(f"{bucket}/table").upload({"x.parquet": tmp_path / "table" / "x.parquet"})
    here = build_dataset(str(tmp_path / "table"), tmp_path / "here")
    assert build_dataset(f"{bucket}/table", tmp_path / "a").digest == here.digest
    assert build_dataset(f"{bucket}/table/x.parquet", tmp_path / "b").digest == here.digest
    with pytest.raises(MetalearnError, match="is an object, expected Parquet"):
        Prefix.parse(bucket).write("one.txt", b"x")
        open_source(f"{bucket}/one.txt")


def test_a_dataset_in_a_bucket_opens_anywhere_and_is_downloaded_once(
    image_folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = f"{bucket}/episodes"
    built = build_at(at, lambda folder: build_dataset(str(image_folder), folder, OPTIONS))
    assert [found.name for found in Prefix.parse(at).objects()] == ["manifest.json", built.shards[0].path]
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "elsewhere"))
    opened = EpisodeDataset.open(at)
    assert opened.digest == built.digest == read_manifest(at).digest
    monkeypatch.setattr(Prefix, "download", lambda *_: pytest.fail("it was downloaded again"))
    assert EpisodeDataset.open(at).examples.equal(opened.examples)
    with pytest.raises(MetalearnError, match="there is a dataset already"):
        build_at(at, lambda folder: pytest.fail("it was built"))


def test_a_manifest_that_points_to_a_missing_shard_is_named(image_folder: Path, bucket: str, tmp_path: Path) -> None:
    at = f"{bucket}/episodes"
    built = build_at(at, lambda folder: build_dataset(str(image_folder), folder, OPTIONS))
    Prefix.parse(at).remove([built.shards[0].path])
    with pytest.raises(MetalearnError, match=r"episode dataset: s3://.*/shard-00000-\w{12}.parquet is missing: build"):
        EpisodeDataset.open(at)
    with pytest.raises(MetalearnError, match=r"there is no s3://.*/nothing/manifest.json"):
        EpisodeDataset.open(f"{bucket}/nothing")


def test_the_steps_build_and_find_and_mend_a_dataset_in_a_bucket(
    images: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, storage = build_options("", image_size=12, color="grey"), f"{bucket}/storage"
    for shard in ("1/2", "2/2"):
        decode_part(images, options, Place.at(storage), shard)
    location, manifest = build_episodes(images, options, Place.at(storage), shards=["1/2", "2/2"])
    assert location == f"{storage}/datasets/{manifest.digest}"
    assert not [found for found in Prefix.parse(storage).objects() if "/part/" in found.name]
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "elsewhere"))
    with monkeypatch.context() as patched:
        patched.setattr("metalearn_core.data.build.build_dataset", lambda *_, **__: pytest.fail("it was built again"))
        assert build_episodes(images, options, Place.at(storage)) == (location, manifest)
    Prefix.parse(location).write(manifest.shards[0].path, b"gone bad")
    assert build_episodes(images, options, Place.at(storage))[1].digest == manifest.digest
    assert EpisodeDataset.open(location).digest == manifest.digest
