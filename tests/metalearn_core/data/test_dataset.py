import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.decode import decode_image
from metalearn_core.errors import MetalearnError


@pytest.fixture
def copied(dataset_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(dataset_folder, copy)
    return copy


def only_shard(folder):
    [shard] = folder.glob("shard-*.parquet")
    return shard


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_examples_are_the_files_pixels_in_the_order_of_classes(dataset: EpisodeDataset, image_folder: Path) -> None:
    rows = range(0, len(dataset.examples), 5)
    for row, key in zip(rows, dataset.example_ids(rows), strict=True):
        expected = decode_image(image_folder / key, 12, "grey")
        assert np.array_equal(dataset.examples[row].numpy(), expected)
        assert dataset.example_hashes([row]) == [hashlib.sha256(expected.tobytes()).digest()[:16]]
        position = int((dataset.class_offset <= row).sum()) - 1
        assert key.startswith(dataset.manifest.classes[position].name + "/")
    assert dataset.class_count.tolist() == [8] * 24


def test_a_dataset_larger_than_memory_is_mapped_and_unpacked_once(dataset_folder: Path, tmp_path: Path) -> None:
    in_memory = EpisodeDataset.open(dataset_folder)
    mapped = EpisodeDataset.open(dataset_folder, cache=tmp_path, max_memory_bytes=0)
    assert torch.equal(mapped.examples, in_memory.examples)
    (unpacked,) = tmp_path.glob(f"{mapped.digest}/examples")
    written = unpacked.stat().st_mtime_ns
    assert torch.equal(
        EpisodeDataset.open(dataset_folder, cache=tmp_path, max_memory_bytes=0).examples, mapped.examples
    )
    assert unpacked.stat().st_mtime_ns == written
    for other in (b"cut short", bytes(unpacked.stat().st_size)):
        unpacked.unlink()
        unpacked.write_bytes(other)
        again = EpisodeDataset.open(dataset_folder, cache=tmp_path, max_memory_bytes=0)
        assert torch.equal(again.examples, in_memory.examples)


@pytest.mark.parametrize(("processes", "mapped"), [(None, False), ("2", False), ("4", True)])
def test_processes_beside_each_other_map_one_copy_of_what_they_cannot_all_hold(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str | None, mapped: bool
) -> None:
    """The half of what is available has room for two copies."""
    size = EpisodeDataset.open(dataset_folder).examples.nbytes
    monkeypatch.setattr("metalearn_core.data.dataset.available_memory", lambda: 4 * size)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert EpisodeDataset.open(dataset_folder, cache=tmp_path).mapped is mapped


@pytest.mark.parametrize("max_memory_bytes", [None, 0])
def test_a_flipped_byte_is_never_read_as_good(copied: Path, tmp_path: Path, max_memory_bytes: int | None) -> None:
    EpisodeDataset.open(copied, cache=tmp_path, max_memory_bytes=max_memory_bytes)
    flip_a_byte(only_shard(copied))
    with pytest.raises(MetalearnError, match=r"shard-00000-\w{12}.parquet is damaged, its sha256 is another: build"):
        EpisodeDataset.open(copied, cache=tmp_path, max_memory_bytes=max_memory_bytes)


def test_a_missing_or_cut_shard_is_said(copied: Path) -> None:
    shard = only_shard(copied)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(MetalearnError, match="is damaged, 100 bytes instead of"):
        EpisodeDataset.open(copied)
    shard.unlink()
    with pytest.raises(MetalearnError, match=r"shard-00000-[0-9a-f]{12}.parquet is missing"):
        EpisodeDataset.open(copied)


def test_a_newer_or_damaged_or_missing_manifest_is_refused(copied: Path) -> None:
    manifest = copied / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(MetalearnError, match="schema version 99"):
        EpisodeDataset.open(copied)
    manifest.write_text(json.dumps({**content, "classes": "none"}))
    with pytest.raises(MetalearnError, match="is damaged: classes"):
        EpisodeDataset.open(copied)
    manifest.unlink()
    with pytest.raises(MetalearnError, match="there is no"):
        EpisodeDataset.open(copied)
