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

from metalearn_core.events import emit
from metalearn_core.storage import file_digest, new_folder, read_json, text_digest, write_json
from metalearn_core.version import library_versions, source_digest

_CONTENTS = "contents.json"


def result_digest(kind: str, key: Mapping[str, Any]) -> str:
    """Return the 32 hexadecimal digits that a result of `kind` with this key is kept under, with this code."""
    code = {"sources": source_digest(), "libraries": library_versions()}
    return text_digest({"kind": kind, "key": dict(key), "code": code})[:32]


def result_folder(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Return the folder that a result of `kind` with this key has, or will have, below `root`."""
    return root / kind / result_digest(kind, key)


def kept(root: Path, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of a result, made now by `make(folder)` unless a whole one is kept; and whether it was kept.

    A damaged or incomplete result is removed, with a warning, and made again. Two processes that want the same result
    take turns: the second finds what the first made.

    Args:
        root: where results are kept.
        kind: of the result; the first folder below `root`.
        key: JSON values, all that the result depends on but the code.
        make: fills an empty folder; what it leaves there when it raises is removed.
    """
    folder = result_folder(root, kind, key)
    name = folder.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        if folder.exists():
            if damage := _damage(folder):
                emit("warning", kind, text=f"kept result {folder} is damaged ({damage}); it is made again")
                shutil.rmtree(folder)
            else:
                return folder, True
        for remains in folder.parent.glob(f".{name}.*.tmp"):  # of a process that was killed: the lock is ours now
            shutil.rmtree(remains, ignore_errors=True)
        with new_folder(folder) as unfinished:
            make(unfinished)
            write_json(unfinished / _CONTENTS, {"kind": kind, "key": dict(key), "files": _digests(unfinished)})
    return folder, False


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _CONTENTS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(files)}


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a kept result, None where it is whole."""
    try:
        expected = read_json(folder / _CONTENTS, "kept result")["files"]
    except Exception as error:  # whatever is wrong with it, it is made again
        return str(error)
    found = _digests(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is {'missing' if name not in found else 'not as it was written'}"
    return None
