"""Where labelled examples come from."""

from pathlib import Path

from metalearn_core.data.sources.contract import Source
from metalearn_core.errors import MetalearnError

GLYPHS = "glyphs"


def open_source(location: str) -> Source:
    """Return the source at a location: `glyphs`, a folder of images, a Parquet file, or a folder of those.

    Raises:
        MetalearnError: there is nothing at the location, or nothing that could be a source.
    """
    if location == GLYPHS:
        from metalearn_core.data.sources.glyphs import GlyphSource

        return GlyphSource()
    if "://" in location:
        raise MetalearnError(f"source {location}: addresses are not supported yet: give {GLYPHS}, a folder or a file")
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


def _holds_parquet(folder: Path) -> bool:
    return any(entry.suffix.lower() == ".parquet" and not entry.name.startswith(".") for entry in folder.iterdir())
