"""This machine's copies of objects: each is downloaded once, and again only when it has changed there or here."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from metalearn_core.errors import MetalearnError
from metalearn_core.storage.files import cache_folder, text_digest, write_bytes
from metalearn_core.storage.objects import Prefix, StoredObject, client

_NOTED_AFTER = 1000
_FEW = 8  # names that are asked for one by one
_LONGEST_NAME = 255 - 9  # bytes; a download has a suffix until it is whole


def local_copy(prefix: Prefix) -> Path:
    """Return the folder in which this machine keeps its copies of the objects below a prefix."""
    endpoint = text_digest(client().meta.endpoint_url)[:8]
    return cache_folder() / "s3" / endpoint / prefix.bucket / prefix.key


def fetch(prefix: Prefix, names: Iterable[str]) -> Path:
    """Bring objects to this machine by name, those that are not here yet; return the folder that they are in.

    Raises:
        FileNotFoundError: one of them is not there.
        StorageError: the bucket cannot be read.
    """
    wanted = list(names)
    there = _found(prefix, wanted)
    for name in wanted:
        if name not in there:
            raise FileNotFoundError(2, "no such object", str(prefix / name))
    return fetch_objects(prefix, list(there.values()))


def fetch_objects(prefix: Prefix, objects: Sequence[StoredObject]) -> Path:
    """Bring objects that a listing showed to this machine; return the folder that they are in."""
    folder = local_copy(prefix)
    _check_names(prefix, [each.name for each in objects])
    with _notes(folder) as noted:
        missing = [each for each in objects if noted.get(each.name) != _note(each, folder / each.name)]
        while missing:
            # All notes are written each time: the more there are, the less often.
            count = max(_NOTED_AFTER, len(noted) // 4)
            batch, missing = missing[:count], missing[count:]
            prefix.download({each.name: folder / each.name for each in batch})
            noted.update({each.name: _note(each, folder / each.name) for each in batch})
            _write_notes(folder, noted)
    return folder


def send(prefix: Prefix, names: Sequence[str]) -> None:
    """Upload this machine's copies by name, and remember that they are what is there."""
    folder = local_copy(prefix)
    prefix.upload({name: folder / name for name in names})
    remember(prefix, names)


def remember(prefix: Prefix, names: Sequence[str]) -> None:
    """Note that this machine's copies of some objects are what is there."""
    folder = local_copy(prefix)
    with _notes(folder) as noted:
        noted.update({name: _note(there, folder / name) for name, there in _found(prefix, names).items()})
        _write_notes(folder, noted)


def is_noted(prefix: Prefix, found: StoredObject) -> bool:
    """Return whether this very object was brought to this machine, or sent from it; the copy may be gone."""
    with _notes(local_copy(prefix)) as noted:
        return bool(noted.get(found.name, [])[:2] == [found.etag, found.size])


def noted_names(prefix: Prefix) -> set[str]:
    """Return the names of all objects that were ever brought to this machine, or sent from it."""
    with _notes(local_copy(prefix)) as noted:
        return set(noted)


def forget(prefix: Prefix) -> None:
    """Forget what was ever brought to this machine, or sent from it."""
    with _notes(local_copy(prefix)):
        _notes_path(local_copy(prefix)).unlink(missing_ok=True)


def _found(prefix: Prefix, names: Sequence[str]) -> dict[str, StoredObject]:
    """Return what is there of some names; many are looked for in a listing, of which a request brings a thousand."""
    if len(names) > _FEW:
        wanted = set(names)
        return {found.name: found for found in prefix.objects() if found.name in wanted}
    asked = {name: prefix.find(name) for name in names}
    return {name: found for name, found in asked.items() if found}


@contextmanager
def _notes(folder: Path) -> Any:
    """Yield what is noted of a folder's files, one process at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.fetching")):
        try:
            noted = json.loads(_notes_path(folder).read_bytes())
        except (OSError, ValueError):
            noted = {}
        yield noted if isinstance(noted, dict) else {}


def _notes_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.objects")


def _write_notes(folder: Path, noted: Mapping[str, Any]) -> None:
    write_bytes(_notes_path(folder), json.dumps(noted).encode())


def _note(found: StoredObject, path: Path) -> list[Any]:
    """Return what is noted of a copy: what the object is, and the state of the file, which nobody has touched since."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return []
    return [found.etag, found.size, status.st_size, status.st_mtime_ns]


def _check_names(prefix: Prefix, names: Sequence[str]) -> None:
    """Refuse a name that would lead out of the folder, is too long for a file, or is a folder's."""
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in names:
        path = PurePosixPath(name)
        strange = path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name or name in folders
        if strange or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
            raise MetalearnError(f"{prefix / name}: the name of this object cannot be a file's: rename it")
