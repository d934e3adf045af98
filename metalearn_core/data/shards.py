"""The dataset's Parquet files: a row group a class, written in order and cut at a size, read back as arrays."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from metalearn_core.data.manifest import Shard
from metalearn_core.errors import MetalearnError
from metalearn_core.storage import file_digest

SHARD_BYTES = 256 * 1024 * 1024
HASH_BYTES = 16


@dataclass(frozen=True)
class ClassBlock:
    """The examples of one class, in order: their keys, hashes (16 bytes each) and values (n, *x)."""

    id: int
    keys: Sequence[str]
    hashes: Sequence[bytes]
    examples: npt.NDArray[Any]


class ShardWriter:
    """Writes classes into Parquet shards in a folder, one after the other."""

    def __init__(self, folder: Path, example_shape: tuple[int, ...], dtype: Literal["uint8", "float32"]) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.row_group = 0
        self._file: Any = None
        self._writer: Any = None
        size = int(np.prod(example_shape))
        self._type = pa.binary(size) if dtype == "uint8" else pa.list_(pa.float32(), size)
        self._schema = pa.schema(
            [("class", pa.int32()), ("id", pa.string()), ("hash", pa.binary(HASH_BYTES)), ("x", self._type)]
        )

    def write(self, block: ClassBlock) -> tuple[int, int]:
        """Append a class; return the number of its shard and of the row group in it."""
        if self._writer is None or self._file.tell() >= SHARD_BYTES:
            self._next()
        count = len(block.keys)
        values = np.ascontiguousarray(block.examples)
        if pa.types.is_fixed_size_binary(self._type):
            x = pa.Array.from_buffers(self._type, count, [None, pa.py_buffer(values)])
        else:
            x = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=self._type)
        columns = [
            pa.array(np.full(count, block.id, np.int32)),
            pa.array(block.keys, pa.string()),
            pa.array(block.hashes, pa.binary(HASH_BYTES)),
            x,
        ]
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=count)
        place = (len(self.paths) - 1, self.row_group)
        self.row_group += 1
        return place

    def close(self) -> tuple[Shard, ...]:
        """Finish the last shard; return them all with their digests."""
        self._finish()
        return tuple(_named(path) for path in self.paths)

    def abandon(self) -> None:
        """Let go of the open file after a failure."""
        if self._file is not None:
            self._file.close()

    def _next(self) -> None:
        self._finish()
        path = self.folder / f"shard-{len(self.paths):05d}.parquet"
        self.paths.append(path)
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression="zstd", use_dictionary=["class"], write_statistics=["class"]
        )
        self.row_group = 0

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._writer = self._file = None


def _named(path: Path) -> Shard:
    """Give a finished shard a name that holds a part of its digest: two builds for one place never mix theirs."""
    sha256 = file_digest(path)
    final = path.rename(path.with_name(f"{path.stem}-{sha256[:12]}{path.suffix}"))
    return Shard(path=final.name, sha256=sha256, bytes=final.stat().st_size)


def verify_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard with its digest.

    Raises:
        MetalearnError: it is missing, or not the file that was written.
    """
    path = folder / shard.path
    try:
        found = path.stat().st_size
        whole = found == shard.bytes and file_digest(path) == shard.sha256
    except (FileNotFoundError, NotADirectoryError):
        raise MetalearnError(f"episode dataset: {path} is missing: build the dataset again") from None
    if not whole:
        what = "its sha256 is another" if found == shard.bytes else f"{found} bytes instead of {shard.bytes}"
        raise MetalearnError(f"episode dataset: {path} is damaged, {what}: build the dataset again")


def read_examples(path: Path, shape: tuple[int, ...], dtype: Literal["uint8", "float32"]) -> Iterator[npt.NDArray[Any]]:
    """Yield the examples (n, *shape) of a shard, some row groups at a time, in order."""
    with pq.ParquetFile(path, memory_map=True) as file:
        groups = range(file.num_row_groups)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for some in _together(file, groups, size):
            for chunk in file.read_row_groups(some, columns=["x"]).column(0).chunks:
                yield _as_array(chunk, shape, dtype)


def read_class(
    path: Path, row_group: int, shape: tuple[int, ...], dtype: Literal["uint8", "float32"]
) -> tuple[list[str], npt.NDArray[Any]]:
    """Return the keys and examples (n, *shape) of one row group of a shard."""
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(row_group, columns=["id", "x"])
    blocks = [_as_array(chunk, shape, dtype) for chunk in table.column("x").chunks]
    return table.column("id").to_pylist(), np.concatenate(blocks)


def read_column(path: Path, name: Literal["id", "hash"]) -> list[Any]:
    """Return a column of a shard: the keys of its examples, or their hashes."""
    values: list[Any] = pq.read_table(path, columns=[name]).column(0).to_pylist()
    return values


def examples_digest(hashes: Sequence[bytes]) -> str:
    """Return the digest of a class, 32 hexadecimal digits, from the full hashes of its examples in order."""
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:32]


def _together(
    file: Any, groups: Sequence[int], example_bytes: int, limit: int = 64 * 1024 * 1024
) -> Iterator[list[int]]:
    """Yield row groups by batches of about `limit` bytes: reading one by one is slow, and all at once is large."""
    batch: list[int] = []
    size = 0
    for group in groups:
        batch.append(group)
        size += file.metadata.row_group(group).num_rows * example_bytes
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _as_array(chunk: Any, shape: tuple[int, ...], dtype: Literal["uint8", "float32"]) -> npt.NDArray[Any]:
    if dtype == "float32":
        values: npt.NDArray[Any] = chunk.flatten().to_numpy(zero_copy_only=True)
        return values.reshape(-1, *shape)
    size = int(np.prod(shape))
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, count=len(chunk) * size, offset=chunk.offset * size)
    return flat.reshape(-1, *shape)
