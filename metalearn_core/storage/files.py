"""Files and folders on this machine: whole or not at all."""

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError

CACHE_VARIABLE = "METALEARN_CACHE"
DEFAULT_CACHE = "~/.cache/metalearn"


def cache_folder() -> Path:
    """Return where this machine keeps copies that it can make again: METALEARN_CACHE, or ~/.cache/metalearn."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with named_errors(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name the file in the system's errors that name none: a disk that is full while a file is written.

    An error of a library may be an `OSError` without a number: its text says more than a file's name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as a file of readable JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; `what` names it in the error ("bundle", "manifest").

    Raises:
        MetalearnError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        raise MetalearnError(f"{what}: there is no {path}") from None
    except ValueError as error:
        raise MetalearnError(f"{what}: {path} is damaged, it is not JSON ({error})") from None


def read_file(path: Path) -> bytes:
    """Return the content of a regular file; another kind, which might never end, is refused.

    Raises:
        MetalearnError: it is no regular file.
        OSError: it is not there, or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise MetalearnError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'something else'}")
    return path.read_bytes()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(value: Any) -> str:
    """Return the sha256 of a JSON value, 64 hexadecimal digits; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def copy_folder(folder: Path, destination: Path) -> None:
    """Copy a folder's content to `destination`, which may exist."""
    shutil.copytree(folder, destination, dirs_exist_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends, and is removed when it raises.

    When another process has put a folder at `path` meanwhile, that one stays: whoever is first wins. Where `path` is a
    link, what it points to is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir() or not any(path.iterdir()):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
