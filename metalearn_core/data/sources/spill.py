"""Reads examples back from a scratch file; imported by every decoding worker, so it imports little."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from metalearn_core.data.decode import decode_image, is_grey_image
from metalearn_core.data.sources.contract import Color, Example, Item, UndecodableError

Place = tuple[int, int]


@dataclass(frozen=True)
class SpilledImageLoader:
    """Decodes encoded images that lie one after the other in a file."""

    path: str
    image_size: int
    color: Color

    def __call__(self, item: Item) -> Example:
        """Return an image's pixels (c, image_size, image_size)."""
        if item.place is None:
            raise UndecodableError("has no image bytes")
        return decode_image(BytesIO(_read(self.path, item.place)), self.image_size, self.color)


@dataclass(frozen=True)
class SpilledGreyTest:
    """Tells of such images whether they have a single channel, by their headers."""

    path: str

    def __call__(self, item: Item) -> bool:
        """Return whether an image has; True where there are no bytes."""
        return item.place is None or is_grey_image(BytesIO(_read(self.path, item.place)))


@dataclass(frozen=True)
class FeatureLoader:
    """Reads feature vectors of a given size."""

    path: str
    size: int

    def __call__(self, item: Item) -> Example:
        """Return a vector (size,) float32."""
        if item.place is None:
            raise UndecodableError("has no features")
        values = np.frombuffer(_read(self.path, item.place), np.float32)
        if len(values) != self.size:
            raise UndecodableError(f"{len(values)} features, most rows have {self.size}")
        if not np.isfinite(values).all():
            raise UndecodableError("has features that are missing or not finite")
        return values


def _read(path: str, place: Place) -> bytes:
    file = _open(path)
    file.seek(place[0])
    return file.read(place[1])


@lru_cache(maxsize=1)
def _open(path: str) -> BinaryIO:
    return Path(path).open("rb")
