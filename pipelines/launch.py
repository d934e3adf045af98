"""Start a local pipeline run as a process of its own, watch it, and return what it came to.

The engine's process is started before the run's inputs are known to be good: it imports what it needs while they are
checked, and does nothing until it gets its request.
"""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError
from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.lifetime import OWNER_VARIABLE, owner_value
from metalearn_core.steps.frame import PIPELINE_RUN_VARIABLE
from metalearn_core.storage import read_json
from pipelines.command_line.watch import Watcher
from pipelines.container_engine import SCRATCH
from pipelines.containers import HOST_VARIABLE, Containers, remove_containers
from pipelines.local_engine import FORKS, EngineRequest
from pipelines.workdir import TRACKING_VARIABLE, Workdir

_LAST_LINES = 3


@contextmanager
def warm_engine(*, forks: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the engine's process, and end it with the block, whatever it does then.

    Args:
        forks: its steps will be processes here, not containers: their libraries are imported meanwhile.
    """
    command = [sys.executable, "-m", "pipelines.local_engine", *([FORKS] if forks else [])]
    environment = {**os.environ, OWNER_VARIABLE: owner_value(), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_pipeline(
    engine: "subprocess.Popen[bytes]",
    arguments: dict[str, Any],
    workdir: Workdir,
    watcher: Watcher,
    build_shards: int = 1,
    containers: Containers | None = None,
) -> dict[str, Any]:
    """Run the pipeline on this machine and return the summary that its last step wrote.

    Args:
        engine: its process, from `warm_engine`.
        arguments: the pipeline's inputs.
        workdir: where the run's folder is made.
        watcher: is told what the steps report.
        build_shards: steps that share the decoding of the source.
        containers: that the steps run in; None: each is a process here.

    Raises:
        MetalearnError: a step failed; the line is that step's own.
    """
    run_id = str(uuid.uuid4())
    folder = workdir.runs / run_id
    events, log = folder / "events.jsonl", folder / "log.txt"
    request = EngineRequest(
        arguments=arguments,
        build_shards=build_shards,
        root=folder / "kfp",
        artifacts=workdir.artifacts,
        experiment=arguments["experiment"],
        log=log,
        environment={
            TRACKING_VARIABLE: workdir.tracking_uri,
            EVENTS_VARIABLE: str(events),
            PIPELINE_RUN_VARIABLE: run_id,
            **({HOST_VARIABLE: containers.engine.address} if containers else {}),
        },
        run_id=run_id,
        containers=containers,
    )
    folder.mkdir(parents=True)
    events.touch()
    log.touch()
    try:
        with watcher.following(events):
            engine.communicate(request.model_dump_json().encode())
    except BaseException:
        engine.kill()
        if containers:
            remove_containers(containers.engine.address, run_id)
        _end_runs(run_id, "interrupted: the same command goes on")
        raise
    finally:
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    if engine.returncode != 0 or watcher.summary is None:
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
