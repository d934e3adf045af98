"""What surrounds the work of every step: its events, its one line of error, and the outcome on the tracking server."""

import atexit
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.events import emit
from metalearn_core.lifetime import end_with_owner
from metalearn_core.training.termination import TrainingStoppedError, end_process

PIPELINE_RUN_VARIABLE = "METALEARN_PIPELINE_RUN_ID"
_EXECUTOR = "kfp.dsl.executor_main"


def pipeline_run_id() -> str:
    """Return the id of the pipeline run that this step belongs to; it reaches a step by environment, outside any key.

    Raises:
        MetalearnError: METALEARN_PIPELINE_RUN_ID is not set.
    """
    value = os.environ.get(PIPELINE_RUN_VARIABLE)
    if not value:
        raise MetalearnError(f"{PIPELINE_RUN_VARIABLE} is not set: a step is run by its pipeline")
    return value


@contextmanager
def step(name: str, subject: str = "") -> Iterator[None]:
    """Run the body as the step `name`, about `subject` (a learner) where there are several of it.

    An expected failure (a `MetalearnError`, or the operating system's refusal) becomes one line on standard error, an
    `error` event, the outcome of the MLflow run and a message to the webhook, and ends the process with status 1; a
    training that SIGTERM stopped ends a process of its own with 143. A programming error keeps its traceback in the
    step's log, and is reported in the same way.
    """
    end_with_owner()
    done: list[str] = []
    atexit.register(_leave, done)  # the first to be registered is the last to be called
    emit("start", name, subject=subject)
    try:
        yield
    except Exception as error:
        if not isinstance(error, (MetalearnError, OSError)):
            traceback.print_exc()
        reason = one_line(error)
        emit("error", name, subject=subject, text=reason)
        sys.stderr.write(f"{name}: {reason}\n")
        with patience_after(error):
            _tell_failure(name, subject, reason)
        if isinstance(error, TrainingStoppedError) and _is_own_process():
            end_process(error.exit_status)
        raise SystemExit(1) from None
    emit("done", name, subject=subject)
    done.append(name)


@contextmanager
def patience_after(error: BaseException) -> Iterator[None]:
    """Wait only seconds for the tracking server, inside the block, where an error is that this process has to end."""
    from metalearn_core.tracking_server import impatience

    if isinstance(error, Exception) and not isinstance(error, TrainingStoppedError):
        yield
        return
    with impatience():
        yield


def _leave(done: list[str]) -> None:
    """End the process of a step that is done at once: to take its modules down one by one takes up to two seconds.

    Only where nothing went wrong after it.
    """
    if done and _is_own_process() and not hasattr(sys, "last_value"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _is_own_process() -> bool:
    """Return whether KFP started the process for this step alone."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    return specification is not None and specification.name == _EXECUTOR


def _tell_failure(name: str, subject: str, reason: str) -> None:
    """Tell the webhook, and the tracking server, which may itself be what failed: then the exit status has to do."""
    from metalearn_core.webhook import announce

    run_id = None
    with suppress(Exception):
        from metalearn_core import tracking

        run_id = tracking.find_parent_run(pipeline_run_id())
        if run_id:
            tracking.mark_failed(run_id, f"{name}: {reason}")
    with suppress(Exception):
        step_name = f"{name} {subject}".strip()
        announce("failed", step_name, reason, run_id=run_id, pipeline_run=os.environ.get(PIPELINE_RUN_VARIABLE, ""))
