"""What a long piece of work tells whoever watches it: progress, warnings and failures, as JSON lines."""

import json
import os
import time
from contextlib import suppress
from typing import Any

EVENTS_VARIABLE = "METALEARN_EVENTS"


def emit(kind: str, step: str, **values: Any) -> None:
    """Append one event to the file that METALEARN_EVENTS names; without one, do nothing.

    A line is written by a single call in append mode, so that steps that run side by side do not mix theirs. Where it
    cannot be written (the disk is full, the folder is gone) it is lost, and the work goes on.

    Args:
        kind: `start`, `progress`, `note`, `warning`, `done` or `error`.
        step: the step or learner that it is about.
        values: JSON values. For `progress`: `done` and `total` (floats, any unit), and `text` for what to show beside.
    """
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return
    line = json.dumps({"time": time.time(), "kind": kind, "step": step, **values}) + "\n"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
