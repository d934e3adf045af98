"""Examples of a dataset that does not fit in memory, unpacked once a machine into one file that can be mapped."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from metalearn_core.storage import file_digest, named_errors, new_folder, write_bytes

_EXAMPLES = "examples"
_NOTE = "examples.json"


def unpacked(store: Path, digest: str, size: int, blocks: Iterable[npt.NDArray[Any]]) -> Path:
    """Return the file that holds the examples of dataset `digest` one after the other; the first to come writes it.

    The file is used as it is while its size and times are those noted when it was written or last compared with its
    sha256; else it is compared again, and written anew where it differs. What killed processes left half written in
    the store is removed. Processes take turns, so that a file is written once.

    Args:
        store: the machine's folder for unpacked datasets.
        digest: the dataset's name.
        size: of the file in bytes.
        blocks: the examples in order; drawn from only when the file has to be written.

    Raises:
        OSError: the store cannot be written, or is full.
    """
    folder = store / digest
    path, note = folder / _EXAMPLES, folder / _NOTE
    if _is_as_noted(path, note, size):
        return path
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / ".unpacking.lock"):
        _sweep(store)
        if _is_as_noted(path, note, size):
            return path
        if _has_noted_digest(path, note, size):
            _write_note(path, note, _read_note(note)["sha256"])
            return path
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as unfinished:
            sha256 = _write(unfinished / _EXAMPLES, blocks)
            _write_note(unfinished / _EXAMPLES, unfinished / _NOTE, sha256)
    return path


def stamp(path: Path) -> list[int]:
    """Return what changes when a file is written: size, times and inode; nothing where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_as_noted(path: Path, note: Path, size: int) -> bool:
    found = stamp(path)
    return found[:1] == [size] and found == _read_note(note).get("stamp")


def _has_noted_digest(path: Path, note: Path, size: int) -> bool:
    noted = _read_note(note).get("sha256")
    return noted is not None and stamp(path)[:1] == [size] and file_digest(path) == noted


def _read_note(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_note(path: Path, note: Path, sha256: str) -> None:
    write_bytes(note, json.dumps({"sha256": sha256, "stamp": stamp(path)}).encode())


def _write(path: Path, blocks: Iterable[npt.NDArray[Any]]) -> str:
    """Write the blocks one after the other; return the sha256 of all."""
    digest = hashlib.sha256()
    with named_errors(path), path.open("wb") as file:
        for block in blocks:
            content = np.ascontiguousarray(block).data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sweep(store: Path) -> None:
    """Remove what was half written: nobody is writing while the lock is ours."""
    for remains in store.glob(".*.tmp"):
        if remains.is_dir():
            shutil.rmtree(remains, ignore_errors=True)
