"""Which code this is: the package's version, a digest of the core's sources, and the git commit."""

import hashlib
import os
import re
import subprocess
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT_VARIABLE = "METALEARN_GIT_COMMIT"
IMAGE_VARIABLE = "METALEARN_IN_IMAGE"


@cache
def package_version() -> str:
    """Return the version of the installed distribution."""
    return _version("metalearn-pipelines")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+unknown"


@cache
def source_digest() -> str:
    """Return 16 hexadecimal digits over the core's sources, an uncommitted change included.

    It is part of the key of every kept result, so that no result of older code is taken for a new one's.
    """
    return digest_of_sources(Path(__file__).parent)


def digest_of_sources(*places: Path, suffixes: Collection[str] = (".py", ".j2")) -> str:
    """Return 16 hexadecimal digits over the sources in the folders of some packages, and over single files.

    Args:
        places: folders and files.
        suffixes: of the files in the folders that count.
    """
    digest = hashlib.sha256()
    for place in places:
        root = place.parent if place.is_file() else place
        for path in [place] if place.is_file() else sorted(_sources(place, suffixes)):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sources(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that what is computed depends on; a part of every kept result's key."""
    return {name: _version(name) for name in ("great-expectations", "numpy", "pillow", "scikit-learn", "torch")}


def image_name() -> str | None:
    """Return the name of the image that this process runs in, from METALEARN_IN_IMAGE; None outside one."""
    return os.environ.get(IMAGE_VARIABLE)


def version_name() -> str:
    """Return version and commit as a name that Kubernetes takes as well."""
    return re.sub(r"[^a-z0-9.-]+", "-", f"{package_version()}-{git_commit()}".lower())


@cache
def git_commit(root: Path = Path(__file__).parent.parent) -> str:
    """Return the commit of a checkout, `-dirty` behind it where files were changed; "unknown" outside a repository.

    An image has no repository: there METALEARN_GIT_COMMIT says it.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
