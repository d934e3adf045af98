"""A source in a bucket: its listing tells the classes, and only what is decoded here is copied to this machine."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn_core.data.sources.contract import SourceClass
from metalearn_core.data.sources.folder import FolderSource, ImageFolder, classes_of, is_ignored, is_image
from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.storage.mirror import fetch_objects, local_copy
from metalearn_core.storage.objects import Prefix, StoredObject

_TABLE = ".parquet"


@dataclass(frozen=True)
class ObjectListing:
    """What there is below a prefix; for the address of a single object, that object below its parent."""

    prefix: Prefix
    objects: Sequence[StoredObject]
    single: bool = False

    @classmethod
    def read(cls, location: str) -> "ObjectListing":
        """List an address.

        Raises:
            UsageError: it is no address.
            MetalearnError: there is nothing, or the bucket cannot be read.
        """
        prefix = Prefix.parse(location)
        objects = [found for found in prefix.objects() if not any(map(is_ignored, found.name.split("/")))]
        if objects:
            return cls(prefix, objects)
        found = prefix.find() if prefix.key else None
        if found is None:
            raise MetalearnError(f"source {location}: there is nothing at this address")
        if not prefix.name.lower().endswith(_TABLE):
            raise MetalearnError(f"source {location}: is an object, expected Parquet, or a prefix of images or Parquet")
        return cls(prefix.parent, [StoredObject(prefix.name, found.size, found.etag)], single=True)

    def tables(self) -> list[StoredObject]:
        """Return the Parquet files directly below."""
        return [found for found in self.objects if "/" not in found.name and found.name.lower().endswith(_TABLE)]

    def copied(self, tables: Sequence[StoredObject]) -> Path:
        """Return the path on this machine of a single table, or of the folder that holds several."""
        emit(
            "note", "build", text=f"copying {len(tables)} Parquet files from {self.prefix} where they are not here yet"
        )
        folder = fetch_objects(self.prefix, tables)
        wanted = {found.name for found in tables}
        for path in folder.iterdir():
            if not self.single and path.suffix.lower() == _TABLE and path.name not in wanted:
                path.unlink()
        return folder / tables[0].name if self.single else folder

    def fingerprint(self) -> str:
        """Digest names, sizes and what changes with the content."""
        digest = hashlib.sha256(str(self.prefix).encode())
        for found in self.objects:
            digest.update(f"\0{found.name}\0{found.size}\0{found.etag}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class BucketFolderSource(FolderSource):
    """Images below a prefix, with the classes and domains that a folder of the same files would have."""

    def __init__(self, location: str, listing: ObjectListing) -> None:
        super().__init__(location, local_copy(listing.prefix))
        self._listing = listing
        self._by_path = {f"{self.path}/{found.name}": found for found in listing.objects}

    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return a class for every folder that directly holds images, named by its path from the root."""
        return classes_of(self.location, _folders(str(self.path), [found.name for found in self._listing.objects]))

    def bring(self, classes: Sequence[SourceClass]) -> None:
        """Copy the images of some classes to this machine, those that are not here yet."""
        wanted = [self._by_path[item.place] for found in classes for item in found.items]
        emit("progress", "build", done=0.0, total=1.0, text=f"copying {len(wanted):,} images from {self.location}")
        fetch_objects(self._listing.prefix, wanted)

    def fingerprint(self) -> str:
        """Digest the listing."""
        return self._listing.fingerprint()

    def listing_digest(self) -> str:
        """Digest the listing: it is the same on every machine."""
        return self._listing.fingerprint()


def _folders(root: str, names: Sequence[str]) -> list[ImageFolder]:
    """Return the folder that the classes stand in, and then all below it, as they would be on a disk."""
    images: dict[tuple[str, ...], list[str]] = defaultdict(list)
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name in sorted(names):
        *folders, file = name.split("/")
        for depth in range(len(folders)):
            below[tuple(folders[:depth])].add(folders[depth])
        if is_image(file):
            images[tuple(folders)].append(file)
    start: tuple[str, ...] = ()
    while not images[start] and len(below[start]) == 1:
        child = (*start, *below[start])
        if images[child] or not below[child]:
            break
        start = child
    inside = sorted(path for path in {*images, *below} if path[: len(start)] == start)
    return [
        ImageFolder(path[len(start) :], "/".join([root, *path]), images[path], sorted(below[path]), [])
        for path in inside
    ]
