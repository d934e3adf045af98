"""What the learners saw: splits and domains in numbers, with examples."""

from dataclasses import dataclass

import numpy as np

from metalearn_core.data.manifest import SPLITS, ClassEntry, Manifest, Split
from metalearn_core.report.pictures import Album, Picture

SHOWN_DOMAINS = 60
PICTURES_A_DOMAIN = 9


@dataclass(frozen=True)
class Part:
    """The classes of a split, or of one domain in it; those that are turned count as further classes.

    Attributes:
        classes, domains, examples: how many.
        fewest, median, most: examples per class.
    """

    split: Split
    classes: int
    domains: int
    examples: int
    fewest: int
    median: float
    most: int


@dataclass(frozen=True)
class PicturedDomain:
    """One domain with some of its examples, each of another class."""

    name: str
    part: Part
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class DataReport:
    """The splits; the domains that are shown; and how many are not."""

    splits: tuple[Part, ...]
    domains: tuple[PicturedDomain, ...]
    hidden_domains: int


def describe(manifest: Manifest, album: Album) -> DataReport:
    """Return what the report says of a dataset."""
    domains: dict[tuple[Split, str], list[ClassEntry]] = {}
    for entry in manifest.classes:
        domains.setdefault((entry.split, entry.domain), []).append(entry)
    shown = [
        PicturedDomain(name, _part(split, entries), _pictures(entries, album))
        for (split, name), entries in list(domains.items())[:SHOWN_DOMAINS]
    ]
    splits = tuple(_part(split, list(manifest.of_split(split))) for split in SPLITS)
    return DataReport(splits, tuple(shown), max(0, len(domains) - SHOWN_DOMAINS))


def _part(split: Split, entries: list[ClassEntry]) -> Part:
    counts = [entry.count for entry in entries] or [0]
    return Part(
        split,
        sum(len(entry.rotations) for entry in entries),
        len({entry.domain for entry in entries}),
        sum(entry.count for entry in entries),
        min(counts),
        float(np.median(counts)),
        max(counts),
    )


def _pictures(entries: list[ClassEntry], album: Album) -> tuple[Picture, ...]:
    """Return examples of classes evenly spread over a domain."""
    places = np.unique(np.linspace(0, len(entries) - 1, PICTURES_A_DOMAIN).astype(int))
    return tuple(picture for place in places for picture in album.of_class(entries[place].id))
