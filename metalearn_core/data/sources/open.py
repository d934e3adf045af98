"""From a location to the source that is there; what reads it is imported when it is needed."""

from pathlib import Path

from metalearn_core.data.sources.contract import Source
from metalearn_core.data.tasks import SINUSOID
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.storage.objects import is_address

GLYPHS = "glyphs"


def open_source(location: str) -> Source:
    """Return the source at a location: `glyphs`, a folder of images, a Parquet file, or a folder of those.

    A location may be an `s3://` address: what is needed of it is copied to this machine, once.

    Raises:
        MetalearnError: there is nothing at the location, or nothing that could be a source.
    """
    if location == GLYPHS:
        from metalearn_core.data.sources.glyphs import GlyphSource

        return GlyphSource()
    if location == SINUSOID:
        raise UsageError(
            f"source {SINUSOID}: is a distribution of regressions, from which no dataset of classes can be built: give "
            f"it to `metalearn train {SINUSOID}` and `metalearn evaluate MODEL {SINUSOID}`"
        )
    if is_address(location):
        return _open_address(location)
    if "://" in location:
        raise UsageError(
            f"source {location}: expected {GLYPHS}, a folder, a file, or an address like s3://bucket/place"
        )
    path = Path(location).expanduser()
    if not path.exists():
        raise MetalearnError(f"source {location!r}: there is no such file or folder")
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise MetalearnError(
            f"source {location!r}: is a file, expected {GLYPHS}, a folder with a folder of images for each class, "
            "or Parquet"
        )
    if path.is_file() or _holds_parquet(path):
        from metalearn_core.data.sources.table import TableSource

        return TableSource(location, path)
    from metalearn_core.data.sources.folder import FolderSource

    return FolderSource(location, path)


def _open_address(location: str) -> Source:
    from metalearn_core.data.sources.bucket import BucketFolderSource, ObjectListing
    from metalearn_core.data.sources.table import TableSource

    listing = ObjectListing.read(location)
    tables = listing.tables()
    if tables:
        return TableSource(location, listing.copied(tables), fingerprint=listing.fingerprint())
    return BucketFolderSource(location, listing)


def _holds_parquet(folder: Path) -> bool:
    return any(entry.suffix.lower() == ".parquet" and not entry.name.startswith(".") for entry in folder.iterdir())
