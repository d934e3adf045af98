"""The one place that names the image in which every component runs."""

import re
import sys
from pathlib import Path

from metalearn_core.errors import UsageError
from metalearn_core.version import digest_of_sources, git_commit, package_version

REPOSITORY = "metalearn-python"
PACKAGES = ("metalearn_core", "components", "pipelines")  # whose sources are in the image


def default_image() -> str:
    """Return the image's name. Its tag, version and digest of the sources that are in it, never means two things.

    The steps need the core alone; the command line is in the image too, so its sources count as well: else one tag
    would name two images, and a cluster's node keeps whichever it saw first.
    """
    root = Path(__file__).parent.parent
    return f"{REPOSITORY}:{package_version()}-{digest_of_sources(*(root / name for name in PACKAGES))}"


IMAGE = default_image()

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
    if not found["digest"] and found["tag"] in {None, "latest"}:
        raise UsageError(f"--image {name}: expected a tag that stays, or a digest: …@sha256:…")
    return name


def main() -> None:
    """Print what `make image` needs: the image's name, the package's version and the commit."""
    sys.stdout.write(f"{IMAGE} {package_version()} {git_commit()}\n")


if __name__ == "__main__":
    main()
