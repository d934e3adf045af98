"""Labelled and unlabelled images in folders, as `predict` takes them."""

from pathlib import Path

from metalearn_core.errors import MetalearnError


def image_files(path: Path) -> list[Path]:
    """Return an image file, or all image files below a folder, sorted by name.

    Raises:
        MetalearnError: it is not there, or holds none.
    """
    from metalearn_core.data.sources.folder import EXTENSIONS

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MetalearnError(f"there is no {path}")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not files:
        raise MetalearnError(f"{path} holds no image files")
    return files


def labelled_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the image files in the folders of `folder`, and for each the name of its folder: its label.

    Raises:
        MetalearnError: it is not a folder, or has fewer than two folders with images.
    """
    if not folder.is_dir():
        raise MetalearnError(f"--support: there is no folder {folder}")
    files: list[Path] = []
    labels: list[str] = []
    for entry in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
        found = image_files(entry)
        files += found
        labels += [entry.name] * len(found)
    if len(set(labels)) < 2:
        raise MetalearnError(
            f"--support: expected two folders or more in {folder}, one per class, found {len(set(labels))}"
        )
    return files, labels
