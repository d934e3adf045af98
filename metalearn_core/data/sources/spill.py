"""Examples in a scratch file, found by their rows; imported by every decoding worker, so it imports little."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from metalearn_core.data.decode import decode_image, is_grey_image
from metalearn_core.data.sources.contract import Color, Example, Item, UndecodableError

_NOWHERE = -1


class SpillWriter:
    """Writes the contents of rows one after the other into a file, and where they lie into another. A context manager.

    Args:
        path: of the file; the places go into one beside it.
        rows: how many there are, those that are never written among them.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._file = path.open("wb")
        self._places = np.full((rows, 2), _NOWHERE, np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            _places_path(self._path).write_bytes(self._places.data)

    def add(self, row: int, content: Any) -> None:
        """Write the content of a row, as anything that has bytes."""
        offset = self._file.tell()
        self._file.write(content)
        self._places[row] = offset, self._file.tell() - offset


@dataclass(frozen=True)
class SpilledImageLoader:
    """Decodes encoded images; an item's place is its row."""

    path: str
    image_size: int
    color: Color

    def __call__(self, item: Item) -> Example:
        """Return an image's pixels (c, image_size, image_size)."""
        content = _read(self.path, item.place)
        if content is None:
            raise UndecodableError("has no image bytes")
        return decode_image(BytesIO(content), self.image_size, self.color)


@dataclass(frozen=True)
class SpilledGreyTest:
    """Tells of such images whether they have a single channel, by their headers."""

    path: str

    def __call__(self, item: Item) -> bool:
        """Return whether an image has; True where there are no bytes."""
        content = _read(self.path, item.place)
        return content is None or is_grey_image(BytesIO(content))


@dataclass(frozen=True)
class FeatureLoader:
    """Reads feature vectors of a given size; an item's place is its row."""

    path: str
    size: int

    def __call__(self, item: Item) -> Example:
        """Return a vector (size,) float32."""
        content = _read(self.path, item.place)
        if content is None:
            raise UndecodableError("has no features")
        values = np.frombuffer(content, np.float32)
        if len(values) != self.size:
            raise UndecodableError(f"{len(values)} features, most rows have {self.size}")
        if not np.isfinite(values).all():
            raise UndecodableError("has features that are missing or not finite")
        return values


def _read(path: str, row: int) -> bytes | None:
    """Return the content of a row; None where none was written."""
    file, places = _open(path)
    offset, length = places[row].tolist()
    if offset == _NOWHERE:
        return None
    file.seek(offset)
    return file.read(length)


@lru_cache(maxsize=1)
def _open(path: str) -> tuple[BinaryIO, npt.NDArray[np.int64]]:
    return Path(path).open("rb"), np.memmap(_places_path(Path(path)), np.int64, "r").reshape(-1, 2)


def close_spill() -> None:
    """Close the file that this process has read last, if any."""
    _open.cache_clear()


def _places_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-places")
