"""A place where something is kept: a folder, or a prefix of a bucket together with this machine's copy of it."""

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn_core.storage.files import read_file
from metalearn_core.storage.mirror import fetch, local_copy, remember, send
from metalearn_core.storage.objects import Prefix, is_address


@dataclass(frozen=True)
class Place:
    """A place by its folder on this machine and, where it is in a bucket, its prefix there.

    What is committed has a marker: the file that is written last, and only where there is none.
    """

    folder: Path
    prefix: Prefix | None = None

    @classmethod
    def at(cls, location: "str | Path | Place") -> "Place":
        """Return the place at a path or an `s3://` address.

        Raises:
            UsageError: an address that is none.
        """
        if isinstance(location, Place):
            return location
        if is_address(location):
            prefix = Prefix.parse(str(location))
            return cls(local_copy(prefix), prefix)
        return cls(Path(location).expanduser())

    def __str__(self) -> str:
        return str(self.prefix or self.folder)

    def __truediv__(self, name: str) -> "Place":
        return Place(self.folder / name, self.prefix / name if self.prefix else None)

    @property
    def location(self) -> str:
        """The address, or the absolute path: what still names the place in another process."""
        return str(self.prefix or self.folder.resolve())

    def check(self) -> None:
        """Raise a StorageError where the place is in a bucket that cannot be used."""
        if self.prefix:
            self.prefix.check()

    def has(self, name: str) -> bool:
        """Return whether there is a file or object of this name."""
        return self.prefix.find(name) is not None if self.prefix else (self.folder / name).exists()

    def fetch(self, names: Iterable[str]) -> None:
        """Bring files to this machine by name, those that are not here yet.

        Raises:
            FileNotFoundError: the bucket lacks one; in a folder nothing is looked for.
            StorageError: the bucket cannot be read.
        """
        if self.prefix:
            fetch(self.prefix, names)

    def commit(self, names: Sequence[str], marker: str) -> bool:
        """Send this machine's files to where they belong, the marker last; False where another one was first.

        Another marker of the same content is no other.
        """
        if self.prefix is None:
            return True
        content = read_file(self.folder / marker)
        if self.prefix.find(marker):
            return self.prefix.read(marker) == content
        send(self.prefix, names)
        if not self.prefix.write_new(marker, content):
            return False
        remember(self.prefix, [marker])
        return True

    def replace(self, names: Sequence[str], marker: str) -> None:
        """Send this machine's files to where they belong, over those that are there; the marker goes first and last."""
        if self.prefix:
            self.prefix.remove([marker])
            send(self.prefix, names)
            send(self.prefix, [marker])

    def forget(self) -> None:
        """Remove this machine's files; of a place in a bucket, the copy alone.

        Raises:
            OSError: they cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def remove(self) -> None:
        """Remove everything."""
        if self.prefix:
            self.prefix.remove_all()
        self.forget()
