"""A folder of images: every folder that directly holds images is a class, the top folder above it its domain."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn_core.data.decode import decode_image, is_grey_image
from metalearn_core.data.sources.contract import Color, Example, GreyTest, Item, Loader, Source, SourceClass
from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
DEFAULT_DOMAIN = "default"
_IGNORED = frozenset({"__MACOSX"})


@dataclass(frozen=True)
class FolderLoader:
    """Decodes the files of a folder source."""

    image_size: int
    color: Color

    def __call__(self, item: Item) -> Example:
        """Return a file's pixels (c, image_size, image_size)."""
        return decode_image(item.place, self.image_size, self.color)


def is_grey_file(item: Item) -> bool:
    """Whether an image file has a single channel, by its header."""
    return is_grey_image(item.place)


@dataclass(frozen=True)
class ImageFolder:
    """One folder: its path from the root, its images (file names) and its folders, real ones and links to some."""

    parts: tuple[str, ...]
    path: str
    images: list[str]
    folders: list[str]
    links: list[str]


class FolderSource(Source):
    """Images in folders, any depth; hidden files and files without an image's extension are ignored."""

    def __init__(self, location: str, path: Path) -> None:
        self.location = location
        self.path = path

    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return a class for every folder that directly holds images, named by its path from the root."""
        return classes_of(self.location, _walk(str(self.path)))

    def loader(self, image_size: int, color: Color) -> Loader:
        """Return what decodes files."""
        return FolderLoader(image_size, color)

    def grey_test(self) -> GreyTest:
        """Return what looks at a file's header."""
        return is_grey_file

    def fingerprint(self) -> str:
        """Digest the paths, sizes and times of all images."""
        return self._digest(str(self.path), file_state)

    def listing_digest(self) -> str:
        """Digest the names, sizes and times of all images, as far as copies keep them."""
        return self._digest("", copied_state)

    def _digest(self, root: str, state_of: Callable[[str | Path], object]) -> str:
        digest = hashlib.sha256()
        for folder in sorted(_walk(str(self.path)), key=lambda folder: folder.parts):
            for name in folder.images:
                state: object
                try:
                    state = state_of(os.path.join(folder.path, name))  # noqa: PTH118
                except OSError as error:
                    state = error.errno
                named = "/".join([root, *folder.parts, name])
                digest.update(os.fsencode(named) + b"\0" + repr(state).encode() + b"\0")
        return digest.hexdigest()


def file_state(path: str | Path) -> tuple[int, ...]:
    """Return what changes when a file is written."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copied_state(path: str | Path) -> tuple[int, ...]:
    """Return what a copy of a file has in common with it: archives keep whole seconds."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_size, int(status.st_mtime)


def classes_of(location: str, folders: Sequence[ImageFolder]) -> list[SourceClass]:
    """Return a class for each folder that holds images: the first is the root, whose own are of a class if alone.

    Raises:
        MetalearnError: there are no images.
    """
    root, *below = folders
    if root.images and below:
        where = readable(root.path)
        emit("warning", "build", text=f"{len(root.images)} images directly in {where} are of no class: left out")
    found = [_source_class(folder) for folder in (below or folders) if folder.images]
    if not found:
        raise MetalearnError(
            f"source {readable(location)}: no images found: expected a folder for each class, with files "
            f"{', '.join(sorted(EXTENSIONS))}"
        )
    return found


def readable(text: str) -> str:
    """Return a file name as printable text on one line; different names stay different.

    Control characters, line ends, backslashes and bytes that are no UTF-8 are written as backslash escapes.
    """
    return "".join(character if _is_plain(character) else _escape(character) for character in text)


def _is_plain(character: str) -> bool:
    return character != "\\" and (character.isprintable() or character == "\u200d")


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _walk(root: str) -> list[ImageFolder]:
    """Return the folder that the classes stand in, and then all below it; each real folder once, links last.

    While a folder holds one folder and nothing else that counts, the walk starts from that one.
    """
    start = _list((), root)
    while not start.images and len(start.folders) + len(start.links) == 1:
        child = _list((), os.path.join(start.path, (start.folders + start.links)[0]))  # noqa: PTH118
        if child.images or _identity(child.path) == _identity(start.path) or not (child.folders or child.links):
            break
        start = child
    found, seen = [start], {_identity(start.path)}
    queue = deque([start])
    links: deque[tuple[tuple[str, ...], str]] = deque()
    while queue or links:
        if not queue:
            queue.extend(_enter(found, seen, *links.popleft()))
            continue
        folder = queue.popleft()
        for name in folder.folders:
            queue.extend(_enter(found, seen, (*folder.parts, name), os.path.join(folder.path, name)))  # noqa: PTH118
        links.extend(((*folder.parts, name), os.path.join(folder.path, name)) for name in folder.links)  # noqa: PTH118
    return found


def _enter(
    found: list[ImageFolder], seen: set[tuple[int, int]], parts: tuple[str, ...], path: str
) -> list[ImageFolder]:
    identity = _identity(path)
    if identity in seen:
        return []
    seen.add(identity)
    found.append(_list(parts, path))
    return found[-1:]


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _list(parts: tuple[str, ...], path: str) -> ImageFolder:
    images: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_ignored(entry.name):
                continue
            if _there(entry.is_dir):
                (links if entry.is_symlink() else folders).append(entry.name)
            elif is_image(entry.name) and (
                _there(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
            ):
                images.append(entry.name)
    return ImageFolder(parts, path, images, folders, links)


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name plays no part."""
    return name.startswith(".") or name in _IGNORED


def is_image(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _there(is_what: Callable[[], bool]) -> bool:
    """Whether an entry is what is asked; not where it cannot be looked at, like a link that points to itself."""
    try:
        return is_what()
    except OSError:
        return False


def _source_class(folder: ImageFolder) -> SourceClass:
    name = "/".join(readable(part) for part in folder.parts) or "."
    domain = readable(folder.parts[0]) if len(folder.parts) > 1 else DEFAULT_DOMAIN
    items = [
        Item(f"{name}/{readable(image)}", os.path.join(folder.path, image))  # noqa: PTH118
        for image in folder.images
    ]
    return SourceClass(name, domain, items)
