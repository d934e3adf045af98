"""Which classes are for training, validation and test: by class, by domain, or from a file; always seeded by name."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from metalearn_core.data.manifest import SPLITS, BuildOptions, Split
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.storage import read_file

MIN_DOMAINS = 5
_ORDERS_TRIED = 64
_SHOWN = 3

Assignment = dict[str, Split]


def resolve_split_by(
    asked: Literal["auto", "class", "domain"], default: Literal["auto", "class", "domain"], domains: int
) -> Literal["class", "domain"]:
    """Return what `auto` stands for: the source's default, else whole domains where there are at least 5."""
    chosen = default if asked == "auto" else asked
    if chosen == "auto":
        return "domain" if domains >= MIN_DOMAINS else "class"
    return chosen


def assign_splits(
    domain_of: Mapping[str, str],
    options: BuildOptions,
    split_by: Literal["class", "domain"],
    earlier: Mapping[str, Split] | None = None,
) -> Assignment:
    """Return the split of every class; `domain_of` gives each class's domain, `earlier` the splits to be kept.

    Raises:
        MetalearnError: there are fewer domains than splits that want some.
    """
    kept = dict(earlier or {})
    if split_by == "class":
        return _by_class(sorted(domain_of), options, kept)
    return _by_domain(domain_of, options, kept)


def assign_from_file(names: Sequence[str], rows: Sequence[tuple[str, Split]]) -> Assignment:
    """Return the splits that a file's rows (class, split) give.

    Raises:
        UsageError: a row names a class that the source does not have, or a class has no row.
    """
    given = dict(rows)
    if strangers := sorted(set(given) - set(names)):
        raise UsageError(
            f"split file: the source has no {_count(strangers)}; its classes are named like {min(names)!r}"
        )
    if missing := sorted(set(names) - set(given)):
        raise UsageError(f"split file: no row for {_count(missing)}: every class of the source needs one")
    return {name: given[name] for name in names}


def read_split_file(path: Path) -> tuple[tuple[str, Split], ...]:
    """Read a CSV file with the columns class and split; return its rows, sorted by class.

    Raises:
        MetalearnError: it cannot be read.
        UsageError: it is no CSV, a column or a row's class is missing, a split is none of train, validation and test,
            or a class stands twice.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MetalearnError(f"split file {path}: is not UTF-8 text") from None
    except FileNotFoundError:
        raise MetalearnError(f"split file {path}: there is no such file") from None
    except OSError as error:
        raise MetalearnError(f"split file {path}: {(error.strerror or str(error)).lower()}") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _split_rows(path, table)
    except csv.Error as error:
        raise UsageError(f"split file {path}, line {table.reader.line_num}: is no CSV: {error}") from None


def _split_rows(path: Path, table: "csv.DictReader[str]") -> tuple[tuple[str, Split], ...]:
    columns = table.fieldnames or []
    for column in ("class", "split"):
        if column not in columns:
            raise UsageError(f"split file {path}: no column {column!r}: found {', '.join(columns) or 'nothing'}")
    rows: Assignment = {}
    for row in table:
        name, split = row["class"], row["split"]
        where = f"split file {path}, line {table.line_num}"
        if name is None:
            raise UsageError(f"{where}: no class: the row ends before that column")
        if split is None:
            raise UsageError(f"{where}: no split: the row ends before that column; is a quote left open?")
        if None in row:
            raise UsageError(f"{where}: more cells than columns: found {row[None]!r} behind the last")
        if split not in SPLITS:
            raise UsageError(f"{where}: split {split!r}: expected {', '.join(SPLITS)}")
        if name in rows:
            raise UsageError(f"{where}: class {name!r} stands there twice")
        rows[name] = split
    return tuple(sorted(rows.items()))


def _by_class(names: Sequence[str], options: BuildOptions, kept: Assignment) -> Assignment:
    """Give each class, in the order of its keyed hash, to the split that lacks most of its share."""
    lacking = _shares(len(names), options.ratios)
    for split in kept.values():
        lacking[split] -= 1
    chosen = dict(kept)
    for name in sorted((name for name in names if name not in kept), key=_keyed(options.split_seed)):
        split = max(SPLITS, key=lambda split: lacking[split])
        chosen[name] = split
        lacking[split] -= 1
    return chosen


def _by_domain(domain_of: Mapping[str, str], options: BuildOptions, kept: Assignment) -> Assignment:
    """Give whole domains to the splits so that the shares of classes, and of domains, come near the ratios.

    Of several seeded orders in which the domains are dealt out, the one that comes nearest is taken.
    """
    votes: dict[str, Counter[Split]] = defaultdict(Counter)
    for name, split in kept.items():
        votes[domain_of[name]][split] += 1
    settled = {domain: max(SPLITS, key=lambda split: count[split]) for domain, count in votes.items()}
    sizes = Counter(domain_of.values())
    free = sorted(set(sizes) - set(settled))
    taken = Counter(kept.get(name, settled[domain]) for name, domain in domain_of.items() if domain in settled)
    wanted = [split for split, ratio in zip(SPLITS, options.ratios, strict=True) if ratio > 0]
    empty = [split for split in wanted if not taken[split]]
    if len(free) < len(empty):
        raise UsageError(
            f"split by domain: {len(sizes)} domains ({', '.join(sorted(sizes)[:_SHOWN])}), "
            f"expected at least {len(wanted)}, one for each split: split by class"
        )
    target, target_domains = _shares(len(domain_of), options.ratios), _shares(len(sizes), options.ratios)
    lacking = {split: target[split] - taken[split] for split in SPLITS}
    best: tuple[float, dict[str, Split]] | None = None
    for attempt in range(_ORDERS_TRIED):
        order = sorted(free, key=_keyed(options.split_seed, f"{attempt}/"))
        dealt = _deal(order, sizes, lacking, empty)
        classes, domains = Counter(taken), Counter([*settled.values(), *dealt.values()])
        for domain, split in dealt.items():
            classes[split] += sizes[domain]
        distance = sum(
            abs(classes[split] - target[split]) / len(domain_of)
            + abs(domains[split] - target_domains[split]) / len(sizes)
            for split in SPLITS
        )
        if best is None or distance < best[0]:
            best = (distance, dealt)
    assert best is not None
    split_of = {**settled, **best[1]}
    return {name: kept.get(name, split_of[domain]) for name, domain in domain_of.items()}


def _deal(
    order: Sequence[str], sizes: Mapping[str, int], lacking: Mapping[Split, int], empty: Sequence[Split]
) -> dict[str, Split]:
    """Give each domain in turn to the split that lacks most, and the last ones to splits that have none yet."""
    lacking, without, dealt = dict(lacking), list(empty), Assignment()
    for position, domain in enumerate(order):
        choices: Sequence[Split] = without if len(order) - position <= len(without) else SPLITS
        split = max(choices, key=lambda split: lacking[split])
        dealt[domain] = split
        lacking[split] -= sizes[domain]
        if split in without:
            without.remove(split)
    return dealt


def _shares(total: int, ratios: tuple[float, float, float]) -> dict[Split, int]:
    """Divide a number of classes by largest remainder; each split that wants some gets one where there are enough."""
    exact = [ratio * total / sum(ratios) for ratio in ratios]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    for i in range(3):
        if ratios[i] > 0 and counts[i] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[i] += 1
    return dict(zip(SPLITS, counts, strict=True))


def _keyed(seed: int, prefix: str = "") -> Callable[[str], bytes]:
    """Return the key that orders names by a hash of their own, so that no other name matters."""
    return lambda name: hashlib.sha256(f"{seed}/{prefix}{name}".encode()).digest()


def _count(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"class {names[0]!r}{more}"
