"""The one place that names the image in which every component runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from metalearn_core.errors import UsageError
from metalearn_core.version import digest_of_sources, git_commit, image_name, package_version

REPOSITORY = "metalearn-python"
PACKAGES = ("metalearn_core", "components", "pipelines")  # whose sources are in the image
SUFFIXES = (".py", ".j2", ".yaml", ".md", ".typed")  # of what is installed of them
RECIPE = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "infra/requirements.lock",
    "infra/images/Containerfile",
    "infra/images/build",
)
ARGUMENTS = ("BASE_IMAGE", "TORCH", "TORCH_INDEX")
"""What decides, beside the sources, what `make image` builds: files of the checkout, and variables."""
_ROOT = Path(__file__).parent.parent


def default_image(root: Path = _ROOT) -> str:
    """Return the name of the image that is built from a checkout; inside an image, that image's own.

    Its tag, the version and a digest of all that goes into it, never means two things. The steps need the core alone;
    the command line is in the image too, so its sources count as well: else one tag would name two images, and a
    cluster's node keeps whichever it saw first.
    """
    parts = [root / name for name in (*PACKAGES, *RECIPE)]
    return image_name() or f"{REPOSITORY}:{package_version()}-{digest_of_sources(*parts, suffixes=SUFFIXES)}"


IMAGE = default_image()
ON_NODES = f"the steps run in {IMAGE}, which the nodes must have; --image names one in a registry"
"""What a person is told who sends steps to a cluster without naming an image."""

_NAME = re.compile(
    r"(?P<place>[a-z0-9][\w.-]*(?::\d+)?(?:/[a-z0-9][a-z0-9._-]*)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


def pinned(name: str) -> str:
    """Return an image's name, which must stay the same image: a digest, or a tag other than `latest`.

    Raises:
        UsageError: it is no image's name, or one that means another image tomorrow.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise UsageError(f"--image {name!r}: expected an image's name, as registry.example/metalearn-python:0.1.0-4f2a")
    tag = found["tag"] or "latest"
    if not found["digest"] and (tag == "latest" or tag.endswith("-dirty")):
        raise UsageError(f"--image {name}: expected a tag that stays, or a digest: …@sha256:…")
    return name


@dataclass(frozen=True)
class Build:
    """What an image that is built from a checkout is called.

    Attributes:
        version: the package's.
        commit: of the checkout, `-dirty` behind it where what goes into the image is not what was committed.
        source: the address of the repository; empty: it has none.
        names: of the image, the first by its content; one by the commit only where the commit says what is in it.
    """

    version: str
    commit: str
    source: str
    names: tuple[str, ...]


def build(root: Path = _ROOT, environment: Mapping[str, str] = os.environ) -> Build:
    """Return what the image is called that a checkout and the variables of `ARGUMENTS` make."""
    image, version, commit = default_image(root), package_version(), git_commit(root)
    arguments = {name: environment[name] for name in ARGUMENTS if environment.get(name)}
    other = f"-{hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:8]}" if arguments else ""
    changed = _git(root, "status", "--porcelain", "--", *PACKAGES, *RECIPE)
    if changed and not commit.endswith("-dirty"):  # by files that git does not know yet
        commit += "-dirty"
    names = [image + other]
    if not commit.endswith("-dirty"):
        names.append(f"{REPOSITORY}:{version}-{commit}{other}")
    return Build(version, commit, environment.get("SOURCE") or repository_address(root), tuple(names))


def repository_address(root: Path = _ROOT) -> str:
    """Return the address of a checkout's remote repository, without user names or passwords; empty: it has none."""
    remotes = _git(root, "remote").split()
    if not remotes:
        return ""
    address = _git(root, "remote", "get-url", "origin" if "origin" in remotes else remotes[0])
    short = re.fullmatch(r"(?:[^@/]+@)?([\w.-]+):(?!//)(.+)", address)  # as git@github.com:team/name.git
    if short:
        return f"https://{short[1]}/{short[2]}"
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    """Print what `make image` needs, a line each: version, commit, the repository's address, the image's names."""
    made = build()
    sys.stdout.write("\n".join([made.version, made.commit, made.source, *made.names]) + "\n")


if __name__ == "__main__":
    main()
