"""An episode dataset, opened: verified, and its examples as one tensor, in memory or mapped from a cache."""

import json
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn_core.data.manifest import DatasetSpec, Manifest, read_manifest
from metalearn_core.data.rotations import QUARTER_TURNS
from metalearn_core.data.shards import read_column, read_examples, verify_shard
from metalearn_core.data.unpacked import stamp, unpacked
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.resources import available_memory, processes_here
from metalearn_core.storage import cache_folder, write_bytes
from metalearn_core.storage.objects import is_address
from metalearn_core.storage.place import Place

TURNED_BYTES = 512 * 1024 * 1024
_TORCH_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class EpisodeDataset:
    """The examples of an episode dataset, in the order of the manifest's classes.

    Attributes:
        folder: where it is.
        manifest: what it says about itself.
        examples: (N, *x) in the dataset's dtype; read only.
        class_offset: (C,) int64, the first row of each class.
        class_count: (C,) int64, the rows of each class.
        mapped: the examples are read from disk as they are used.
    """

    def __init__(self, folder: Path, manifest: Manifest, examples: Tensor, *, mapped: bool = False) -> None:
        self.folder, self.manifest, self.examples, self.mapped = folder, manifest, examples, mapped
        self.class_count = torch.tensor([entry.count for entry in manifest.classes])
        self.class_offset = self.class_count.cumsum(0) - self.class_count
        self._moved: dict[torch.device, Tensor] = {}
        self._turned: dict[torch.device, Tensor] = {}
        self._turning = threading.Lock()

    @classmethod
    def open(
        cls, uri: str | Path, *, cache: Path | None = None, max_memory_bytes: int | None = None
    ) -> "EpisodeDataset":
        """Open the dataset in a folder or at an `s3://` address; every shard is compared with its sha256.

        Args:
            uri: the folder, or the address: what is not on this machine yet is downloaded.
            cache: where a dataset that does not fit in memory is unpacked, once a machine (default `cache_folder()`).
            max_memory_bytes: the largest dataset to hold in memory; by default this process's share of half of what is
                available: processes that torchrun started beside each other map one copy of a larger one.

        Raises:
            MetalearnError: it is missing, damaged, or of a newer schema.
        """
        folder, manifest = local_dataset(uri)
        if max_memory_bytes is None:
            max_memory_bytes = available_memory() // (2 * processes_here())
        if _byte_count(manifest) <= max_memory_bytes:
            _verify(folder, manifest)
            return cls(folder, manifest, _read_whole(folder, manifest))
        store = (cache or cache_folder()).expanduser()
        _verify_once(folder, manifest, store)
        return cls(folder, manifest, _map(folder, manifest, store), mapped=True)

    @property
    def digest(self) -> str:
        """The dataset's name: 32 hexadecimal digits over content and options."""
        return self.manifest.digest

    @property
    def spec(self) -> DatasetSpec:
        """What a learner must know of it."""
        return self.manifest.spec

    def on(self, device: torch.device) -> Tensor:
        """Return the examples on a device; they are copied there once."""
        if device == self.examples.device:
            return self.examples
        if device not in self._moved:
            self._moved[device] = self.examples.to(device)
        return self._moved[device]

    def place_for(self, device: torch.device) -> torch.device:
        """Return where to draw episodes for work on a device: there, where the examples fit beside everything else."""
        if device.type == "cpu" or self.mapped:
            return torch.device("cpu")
        free, _ = torch.cuda.mem_get_info(device)
        size = self.examples.numel() * self.examples.element_size()
        return device if size <= free // 4 else torch.device("cpu")

    def turned_on(self, device: torch.device) -> Tensor | None:
        """Return the examples in all four quarter turns on a device, (4·N, c, h, w): row r turned t times is t·N + r.

        One copy from here is several times faster than turning what was drawn. None where they would be too large.
        """
        examples = self.on(device)
        if QUARTER_TURNS * examples.numel() * examples.element_size() > TURNED_BYTES:
            return None
        with self._turning:  # several threads may ask at once
            if device not in self._turned:
                turned = [torch.rot90(examples, turn, (-2, -1)) for turn in range(QUARTER_TURNS)]
                self._turned[device] = torch.cat(turned)
        return self._turned[device]

    def example_ids(self, rows: Iterable[int]) -> list[str]:
        """Return the source's key for each row."""
        return [self._keys[int(row)] for row in rows]

    def example_hashes(self, rows: Iterable[int]) -> list[bytes]:
        """Return the content hash of each row: the first 16 bytes of the sha256 of its values."""
        return [self._hashes[int(row)] for row in rows]

    @cached_property
    def _keys(self) -> list[str]:
        return [key for shard in self.manifest.shards for key in read_column(self.folder / shard.path, "id")]

    @cached_property
    def _hashes(self) -> list[bytes]:
        return [value for shard in self.manifest.shards for value in read_column(self.folder / shard.path, "hash")]


def local_dataset(location: str | Path) -> tuple[Path, Manifest]:
    """Return the folder on this machine in which a dataset's files are, and its manifest.

    Raises:
        MetalearnError: it is missing, damaged, of a newer schema, or its address lacks a shard.
    """
    if "://" in str(location) and not is_address(location):
        raise UsageError(f"episode dataset {location}: expected a folder or an address like s3://bucket/some/place")
    place = Place.at(location)
    manifest = read_manifest(location)
    try:
        place.fetch(shard.path for shard in manifest.shards)
    except FileNotFoundError as error:
        raise MetalearnError(f"episode dataset: {error.filename} is missing: build the dataset again") from None
    return place.folder, manifest


def _byte_count(manifest: Manifest) -> int:
    spec = manifest.spec
    examples = sum(entry.count for entry in manifest.classes)
    return examples * int(np.prod(spec.example_shape)) * np.dtype(spec.dtype).itemsize


def _verify(folder: Path, manifest: Manifest) -> None:
    for shard in manifest.shards:
        verify_shard(folder, shard)


def _shape(manifest: Manifest) -> tuple[int, ...]:
    return (sum(entry.count for entry in manifest.classes), *manifest.spec.example_shape)


def _read_whole(folder: Path, manifest: Manifest) -> Tensor:
    examples = torch.empty(_shape(manifest), dtype=_TORCH_DTYPES[manifest.spec.dtype])
    target, row = examples.numpy(), 0
    for block in _blocks(folder, manifest):
        target[row : row + len(block)] = block
        row += len(block)
    return examples


def _blocks(folder: Path, manifest: Manifest) -> Iterator["np.ndarray[Any, Any]"]:
    """Yield the examples (n, *x) of all shards, in order.

    Raises:
        MetalearnError: there are not as many as the manifest says.
    """
    wanted, found = _shape(manifest)[0], 0
    for shard in manifest.shards:
        for block in read_examples(folder / shard.path, manifest.spec.example_shape, manifest.spec.dtype):
            found += len(block)
            if found <= wanted:
                yield block
    if found != wanted:
        raise MetalearnError(f"episode dataset: {folder} has {found} examples, its manifest {wanted}")


def _map(folder: Path, manifest: Manifest, store: Path) -> Tensor:
    """Map the unpacked examples from the machine's store."""
    size = _byte_count(manifest)
    path = unpacked(store, manifest.digest, size, _blocks(folder, manifest))
    dtype = _TORCH_DTYPES[manifest.spec.dtype]
    elements = size // np.dtype(manifest.spec.dtype).itemsize
    return torch.from_file(str(path), shared=False, size=elements, dtype=dtype).view(_shape(manifest))


def _verify_once(folder: Path, manifest: Manifest, store: Path) -> None:
    """Verify shards, unless these very files (size, times) were verified on this machine before."""
    note = store / f"{manifest.digest}.verified"
    state = {
        str((folder / shard.path).resolve()): [shard.sha256, *stamp(folder / shard.path)] for shard in manifest.shards
    }
    try:
        if json.loads(note.read_text()) == state:
            return
    except (OSError, ValueError):
        pass
    _verify(folder, manifest)
    write_bytes(note, json.dumps(state).encode())
