"""Decoded classes on their way to the shards: one scratch file, and what the build must know of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from metalearn_core.data.decode import Decoded
from metalearn_core.data.moments import Moments, chunks, moments_of
from metalearn_core.errors import MetalearnError


@dataclass(frozen=True)
class SpooledClass:
    """A decoded class; its examples are in the order of their hashes, so that file names and order do not matter.

    Attributes:
        offset: of its first byte in the spool.
        moments: of its values, per channel or feature; None where it is empty.
        noise: trace of the covariance of the (undivided) examples, over their number; 0 for a single example.
    """

    name: str
    domain: str
    keys: list[str]
    hashes: list[bytes]
    offset: int
    moments: Moments | None
    noise: float

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.keys)


class ClassSpool:
    """Appends decoded classes to a file, and their means to another."""

    def __init__(self, scratch: Path) -> None:
        self.classes: list[SpooledClass] = []
        self.example_shape: tuple[int, ...] = ()
        self.dtype: Literal["uint8", "float32"] = "uint8"
        self._path, self._means_path = scratch / "examples", scratch / "means"
        self._ordered_path = scratch / "ordered means"
        self._file, self._means = self._path.open("wb"), self._means_path.open("wb")
        self._mean_rows: dict[str, int] = {}

    def add(self, name: str, domain: str, parts: Sequence[Decoded]) -> None:
        """Append a class from its decoded chunks; a class without a readable example is noted, and empty."""
        blocks = [part.examples for part in parts if part.examples is not None]
        keys = [key for part in parts for key in part.keys]
        hashes = [whole for part in parts for whole in part.hashes]
        order = sorted(range(len(keys)), key=lambda i: (hashes[i], keys[i]))
        if not blocks:
            self.classes.append(SpooledClass(name, domain, [], [], self._file.tell(), None, 0.0))
            return
        examples = np.concatenate(blocks)[order]
        if not self.example_shape:
            self.example_shape = examples.shape[1:]
            self.dtype = "uint8" if examples.dtype == np.uint8 else "float32"
        if examples.shape[1:] != self.example_shape:
            raise MetalearnError(f"class {name}: examples of shape {examples.shape[1:]}, others {self.example_shape}")
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(examples).data)
        mean, noise = _mean_and_noise(examples)
        self._mean_rows[name] = len(self._mean_rows)
        self._means.write(mean.astype(np.float32).tobytes())
        self.classes.append(
            SpooledClass(
                name,
                domain,
                [keys[i] for i in order],
                [hashes[i] for i in order],
                offset,
                moments_of(examples),
                noise,
            )
        )

    def examples(self, found: SpooledClass) -> npt.NDArray[Any]:
        """Return the examples (n, *x) of a class, mapped from the file."""
        self._file.flush()
        shape = (found.count, *self.example_shape)
        return np.memmap(self._path, self.dtype, mode="r", offset=found.offset, shape=shape)

    def means(self, classes: Sequence[SpooledClass]) -> npt.NDArray[np.float32]:
        """Return the mean example of each class (C, *x) float32, in their order, mapped from a file."""
        self._means.flush()
        shape = (len(self._mean_rows), *self.example_shape)
        stored: npt.NDArray[np.float32] = np.memmap(self._means_path, np.float32, mode="r", shape=shape)
        with self._ordered_path.open("wb") as ordered:
            for found in classes:
                ordered.write(stored[self._mean_rows[found.name]].tobytes())
        return np.memmap(self._ordered_path, np.float32, mode="r", shape=(len(classes), *self.example_shape))

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._means.close()


def _mean_and_noise(examples: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the mean example, and the trace of the examples' covariance over their number."""
    count = len(examples)
    mean = sum((chunk.sum(0, dtype=np.float64) for chunk in chunks(examples)), np.zeros(examples.shape[1:])) / count
    spread = sum(float(((chunk - mean) ** 2).sum()) for chunk in chunks(examples))
    return mean, spread / (count - 1) / count if count > 1 else 0.0
