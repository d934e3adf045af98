"""The one place that names the image in which every component runs."""

from metalearn_core.version import package_version, source_digest

REPOSITORY = "metalearn-python"


def default_image() -> str:
    """Return the image's name; its tag, version and digest of the core's sources, never means two things."""
    return f"{REPOSITORY}:{package_version()}-{source_digest()}"


IMAGE = default_image()
