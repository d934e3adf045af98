"""Start a local pipeline run as a process of its own, watch it, and return what it came to."""

import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError
from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.lifetime import OWNER_VARIABLE, owner_value
from metalearn_core.steps.frame import PIPELINE_RUN_VARIABLE
from metalearn_core.storage import read_json, write_json
from pipelines.command_line.watch import Watcher
from pipelines.workdir import Workdir

_PERIOD_S = 0.1
_LAST_LINES = 3


def run_pipeline(arguments: dict[str, Any], workdir: Workdir, watcher: Watcher) -> dict[str, Any]:
    """Run the pipeline on this machine and return the summary that its last step wrote.

    Args:
        arguments: the pipeline's inputs.
        workdir: where the run's folder is made.
        watcher: is told what the steps report.

    Raises:
        MetalearnError: a step failed; the line is that step's own.
    """
    run_id = str(uuid.uuid4())
    folder = workdir.runs / run_id
    request = {
        "arguments": arguments,
        "root": str(folder / "kfp"),
        "artifacts": str(workdir.artifacts),
        "experiment": arguments["experiment"],
    }
    write_json(folder / "request.json", request)
    events, log = folder / "events.jsonl", folder / "log.txt"
    events.touch()
    environment = {
        **os.environ,
        EVENTS_VARIABLE: str(events),
        OWNER_VARIABLE: owner_value(),
        PIPELINE_RUN_VARIABLE: run_id,
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "pipelines.local_engine", str(folder / "request.json")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            with watcher.following(events):
                while process.poll() is None:
                    time.sleep(_PERIOD_S)
        except BaseException:
            process.kill()
            _end_runs(run_id, "interrupted: the same command goes on")
            raise
    if process.returncode != 0 or watcher.summary is None:
        reason = watcher.error or _last_lines(log)
        _end_runs(run_id, reason)
        raise MetalearnError(f"{reason} (log: {log})")
    return dict(read_json(watcher.summary, "summary of the run"))


def _end_runs(run_id: str, reason: str) -> None:
    """End the MLflow runs that no step is left to end: of one that was killed, say."""
    from metalearn_core import tracking

    with suppress(Exception):
        parent = tracking.find_parent_run(run_id)
        if parent:
            tracking.end_failed(parent, reason)


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "the run ended early: " + " / ".join(lines[-_LAST_LINES:])
