"""The schedule of a recurring run, checked as Kubeflow Pipelines reads it: six fields, the first of them seconds.

The grammar is that of the Go library that the API server uses (github.com/robfig/cron, version 1), without its
descriptors (`@daily`); what other cron libraries take beside it (`L`, `#`, Sunday as 7) is refused there.
"""

from dataclasses import dataclass

from metalearn_core.errors import UsageError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, start=1)}),
    ("day of the week", 0, 6, {name: number for number, name in enumerate(_DAYS)}),
)


@dataclass(frozen=True)
class Schedule:
    """When recurring runs start: six fields, how many at a time, and whether missed ones are made up for."""

    cron: str
    max_concurrency: int = 1
    catchup: bool = False


def check_cron(expression: str) -> str:
    """Return a schedule with single spaces between its fields.

    Raises:
        UsageError: it is not six fields, or one of them cannot be read.
    """
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        raise UsageError(
            f"--schedule: expected six fields (second minute hour day month weekday), as in '0 0 3 * * *', "
            f"got {len(fields)}: {expression!r}"
        )
    for text, (name, least, most, names) in zip(fields, _FIELDS, strict=True):
        for part in text.split(","):
            if not _is_range(part.lower(), least, most, names):
                raise UsageError(
                    f"--schedule {expression!r}: {name}: got {text!r}, expected {least} to {most}, "
                    "a range as 1-5, a step as */10, a list of these, or *"
                )
    return " ".join(fields)


def _is_range(part: str, least: int, most: int, names: dict[str, int]) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step) > 0):
        return False
    if span in {"*", "?"}:
        return True
    ends = [
        names[end] if end in names else int(end) if end.isascii() and end.isdigit() else -1 for end in span.split("-")
    ]
    return len(ends) <= 2 and ends == sorted(ends) and all(least <= end <= most for end in ends)
