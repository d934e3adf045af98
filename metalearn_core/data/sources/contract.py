"""What every source of labelled examples is, whatever it reads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt

Color = Literal["grey", "rgb"]
Example = npt.NDArray[Any]


class UndecodableError(Exception):
    """An example that cannot be read; its text is the reason, without the path."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example, not yet decoded.

    Attributes:
        key: names it for people: printable, on one line, and the same on every machine.
        place: where the source's loader finds it.
    """

    key: str
    place: Any


@dataclass(frozen=True)
class SourceClass:
    """One class of a source, with its examples not yet decoded; `name` and `domain` are printable."""

    name: str
    domain: str
    items: Sequence[Item]


class Loader(Protocol):
    """Decodes one example; travels to the decoding workers, so its module must be quick to import."""

    def __call__(self, item: Item) -> Example:
        """Return the example: uint8 (c, h, w), or float32 (d,).

        Raises:
            UndecodableError: it cannot be read.
        """


class GreyTest(Protocol):
    """Tells whether an image has a single channel; travels to the workers like a loader."""

    def __call__(self, item: Item) -> bool:
        """Return whether it has; True where it cannot be read."""


@dataclass(frozen=True)
class Origin:
    """What a dataset keeps of its source; the fields are those of `Source`."""

    location: str
    default_split_by: Literal["auto", "class", "domain"]
    rasteriser: str


class Source(ABC):
    """Where labelled examples come from.

    Attributes:
        location: as the person gave it.
        modality: of its examples.
        default_split_by: what `auto` stands for; `auto` itself where the number of domains decides.
        rasteriser: for a source that draws its examples, the version of what draws them; else empty.
    """

    location: str
    modality: Literal["image", "vector"] = "image"
    default_split_by: Literal["auto", "class", "domain"] = "auto"
    rasteriser: str = ""

    @property
    def origin(self) -> Origin:
        """What a dataset keeps of this source."""
        return Origin(self.location, self.default_split_by, self.rasteriser)

    @abstractmethod
    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return all classes, in any order; `scratch` is a folder for temporary files that lives as long as the build.

        Raises:
            MetalearnError: there is nothing to read, or it is not what the location promises.
        """

    def bring(self, classes: Sequence[SourceClass]) -> None:  # noqa: B027  (most have nothing to do)
        """Bring the examples of some classes to this machine before they are decoded; here they are already.

        Raises:
            MetalearnError: they cannot be had.
        """

    @abstractmethod
    def loader(self, image_size: int, color: Color) -> Loader:
        """Return what decodes this source's items into images of `image_size` × `image_size` pixels."""

    @abstractmethod
    def grey_test(self) -> GreyTest | None:
        """Return what tells whether an image has a single channel; None where there is nothing to tell."""

    def close(self) -> None:  # noqa: B027  (most have nothing to do)
        """Let go of the scratch folder, once all items are decoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a cheap identity of the content: equal as long as nothing was added, removed or rewritten."""

    def listing_digest(self) -> str:
        """Return what equal copies have in common, on whatever machine; a rewriting may go unseen by it.

        Only the fingerprint sees a file that is written again with the same size and the same time.
        """
        return self.fingerprint()
