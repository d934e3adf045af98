"""Results that are kept by what they were made from, verified before each use, and made once.

A result is a folder. Its key holds everything that decides its content: inputs by digest, options, the digest of the
core's sources and the versions of the libraries beneath. KFP's cache is not used for this: its key knows neither the
imported code nor what lies behind a path.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.storage import file_digest, new_folder, read_json, text_digest, write_json
from metalearn_core.storage.place import Place
from metalearn_core.version import library_versions, source_digest

_CONTENTS = "contents.json"
_TURNS = 3  # of two machines that spoil each other's result, before one gives up


def result_digest(kind: str, key: Mapping[str, Any]) -> str:
    """Return the 32 hexadecimal digits that a result of `kind` with this key is kept under, with this code."""
    code = {"sources": source_digest(), "libraries": library_versions()}
    return text_digest({"kind": kind, "key": dict(key), "code": code})[:32]


def result_place(root: Place, kind: str, key: Mapping[str, Any]) -> Place:
    """Return the place that a result of `kind` with this key has, or will have, below `root`."""
    return root / kind / result_digest(kind, key)


def kept(root: Place, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of a result, made now by `make(folder)` unless a whole one is kept; and whether it was kept.

    A damaged or incomplete result is removed, with a warning, and made again. Two processes that want the same result
    take turns: the second finds what the first made. Of two machines that make the same one for a bucket, the second
    to end takes what the first made.

    Args:
        root: where results are kept.
        kind: of the result; the first folder below `root`.
        key: JSON values, all that the result depends on but the code.
        make: fills an empty folder; what it leaves there when it raises is removed.
    """
    place = result_place(root, kind, key)
    folder, name = place.folder, place.folder.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        for _ in range(_TURNS):
            if (was_kept := _found_or_made(place, kind, key, make)) is not None:
                return folder, was_kept
    raise MetalearnError(f"{place}: another run keeps writing here: wait for it, then start again")


def _found_or_made(place: Place, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> bool | None:
    """Return whether the result was there; None where another machine's came in between, and they spoilt each other.

    Two results of the same key need not be the same bytes; the files of the second to end can be among the first's.
    """
    folder, name = place.folder, place.folder.name
    damage = _find(place)
    if damage and place.prefix:  # of this machine's copy, or of what it is a copy of?
        place.forget()
        damage = _find(place)
    if damage is None:
        return True
    if damage:
        emit("warning", kind, text=f"kept result {place} is damaged ({damage}); it is made again")
        place.remove()
    for remains in folder.parent.glob(f".{name}.*.tmp"):  # of a process that was killed: the lock is ours now
        shutil.rmtree(remains, ignore_errors=True)
    with new_folder(folder) as unfinished:
        make(unfinished)
        digests = _digests(unfinished)
        write_json(unfinished / _CONTENTS, {"kind": kind, "key": dict(key), "files": digests})
    if place.commit(list(digests), _CONTENTS):
        return False
    place.forget()
    return True if _find(place) is None else None


def discard(root: Place, kind: str, key: Mapping[str, Any]) -> None:
    """Remove a kept result: what it stands for was found to be damaged."""
    result_place(root, kind, key).remove()


def is_kept(root: Place, kind: str, key: Mapping[str, Any]) -> bool:
    """Return whether there is a result, not whether it is whole."""
    return result_place(root, kind, key).has(_CONTENTS)


def _find(place: Place) -> str | None:
    """Bring a result to this machine; return None where it is there and whole, else what is wrong; "": there is none.

    Raises:
        StorageError: the bucket cannot be read: that is no damage.
    """
    sent = place.prefix is not None and place.has(_CONTENTS)
    if sent:
        try:
            place.fetch([_CONTENTS])
            names = _names(place.folder)
            if names is None:
                return f"{_CONTENTS} is not as it was written"
            place.fetch(names)
        except FileNotFoundError as error:
            return f"{error.filename} is missing"
    if not place.folder.exists():
        return ""
    if damage := _damage(place.folder):
        return damage
    if place.prefix and not sent and not place.commit(_names(place.folder) or [], _CONTENTS):
        return "another one was made meanwhile"  # this one is of a process that was killed before it was sent
    return None


def _names(folder: Path) -> list[str] | None:
    """Return the names of a result's files, as noted when it was made; None where that note is damaged."""
    try:
        return list(_expected(folder))
    except Exception:  # whatever is wrong with it, it is made again
        return None


def _expected(folder: Path) -> dict[str, str]:
    """Return the digests of a result's files by name, as they were noted when it was made."""
    return dict(read_json(folder / _CONTENTS, "kept result")["files"])


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _CONTENTS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(files)}


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a kept result, None where it is whole."""
    try:
        expected = _expected(folder)
    except Exception as error:  # whatever is wrong with it, it is made again
        return str(error)
    found = _digests(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is {'missing' if name not in found else 'not as it was written'}"
    return None
