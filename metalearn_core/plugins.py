"""Learners of other distributions, by their entry points; nothing of theirs is imported before it is asked for."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from metalearn_core.version import digest_of_sources

GROUP = "metalearn.learners"


@cache
def plugins() -> Mapping[str, EntryPoint]:
    """Return the entry points of learners by the learners' names."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def plugin_name(entry: EntryPoint) -> str:
    """Return an entry point as a person finds it: its value, and the distribution that declares it."""
    of = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"{entry.value}{of}"


def plugin_digest(learner: str) -> str | None:
    """Return 16 hexadecimal digits over the sources of the package that a learner is in; None: it is no plugin's.

    It is part of the key of what that learner's results are kept under, as the core's own sources are.
    """
    entry = plugins().get(learner)
    spec = find_spec(entry.module.partition(".")[0]) if entry else None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return digest_of_sources(*(Path(place) for place in spec.submodule_search_locations))
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16] if spec.origin else None
