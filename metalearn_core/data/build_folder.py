"""The folder in which a build works: hidden beside its target, and swept away when its owner was killed."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metalearn_core.storage import new_folder

_UNIQUE = "[0-9a-f]" * 32  # what `new_folder` tells its folders apart by; `out.2` is another target than `out`


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """Yield a `new_folder` for `path` that a later build removes if this process is killed.

    A live build holds a lock on its folder, which the system releases however it ends. Folders of dead builds are
    looked for under a lock on the parent folder, so that none is mistaken between being made and being locked.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path.parent) as parent, new_folder_under_lock(path, parent) as folder:
        yield folder


@contextmanager
def new_folder_under_lock(path: Path, parent: int) -> Iterator[Path]:
    """Sweep what dead builds left beside `path`, then yield a new folder, locked."""
    lockable = _lock(parent, wait=True)
    if lockable:
        _sweep(path)
    with new_folder(path) as folder, _opened(folder) as own:
        _lock(own, wait=False)
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_UN)
        yield folder


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open folder; False where another holds it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _sweep(path: Path) -> None:
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{_UNIQUE}.tmp"):
        with suppress(OSError), _opened(stale) as descriptor:
            if _lock(descriptor, wait=False):
                shutil.rmtree(stale, ignore_errors=True)
