"""What a long piece of work tells whoever watches it: progress, warnings and failures, as JSON lines or as a log."""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any

EVENTS_VARIABLE = "METALEARN_EVENTS"
ON_STDERR = "-"
"""What METALEARN_EVENTS is where nobody follows a file: of a pod, its log is all that is kept."""
_PROGRESS_S = 60.0  # between two lines about the same work
_last_progress: dict[str, float] = {}


def emit(kind: str, step: str, **values: Any) -> None:
    """Append one event to the file that METALEARN_EVENTS names; without one, do nothing.

    A line is written by a single call in append mode, so that steps that run side by side do not mix theirs. Where it
    cannot be written (the disk is full, the folder is gone) it is lost, and the work goes on.

    Where METALEARN_EVENTS is `-`, warnings, notes and progress are lines on standard error, as people read them; of
    progress there is one a minute.

    Args:
        kind: `start`, `progress`, `note`, `warning`, `done` or `error`.
        step: the step or learner that it is about.
        values: JSON values. For `progress`: `done` and `total` (floats, any unit), and `text` for what to show beside.
    """
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return
    if path == ON_STDERR:
        _log(kind, step, values)
        return
    line = json.dumps({"time": time.time(), "kind": kind, "step": step, **values}) + "\n"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def is_logged() -> bool:
    """Return whether events are lines on standard error."""
    return os.environ.get(EVENTS_VARIABLE) == ON_STDERR


def _log(kind: str, step: str, values: Mapping[str, Any]) -> None:
    """Write a line on standard error. Errors are not among them: a step says itself, there, why it fails."""
    text = " ".join(str(values.get("text") or "").split())
    if kind == "progress":
        share, now = values["done"] / (values["total"] or 1), time.monotonic()
        if share < 1 and now - _last_progress.get(step, -inf) < _PROGRESS_S:
            return
        _last_progress[step] = now
        line = f"{step}: {100 * share:.0f} %: {text}"
    elif kind in {"note", "warning"}:
        line = f"warning: {text}" if kind == "warning" else text
    else:
        return
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
