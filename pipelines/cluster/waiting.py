"""Follow a run on the cluster to its end, whatever that is, through lost connections."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type

from pipelines.cluster.errors import ClusterError, UnavailableError, without_secrets

if TYPE_CHECKING:
    from pipelines.cluster.client import ClusterClient

SUCCEEDED = "SUCCEEDED"
ENDS = {SUCCEEDED, "FAILED", "CANCELED", "SKIPPED"}
"""The API's states of a run that change no more."""
_OUTCOMES = {"FAILED": "the run failed", "CANCELED": "the run was canceled", "SKIPPED": "the run was skipped"}
_UNKNOWN = "PENDING"
_PATIENCE_S = 600.0
_LONGEST_PAUSE_S = 10.0
_LONGEST_RETRY_S = 60.0
_ORDER = ("FAILED", "CANCELED", "CANCELING", "RUNNING", "PAUSED", "PENDING", "SUCCEEDED", "SKIPPED")


@dataclass(frozen=True)
class Step:
    """A step of a run; one that is in a loop stands for all of its rounds.

    Attributes:
        name: as KFP's page shows it.
        state: of the round that matters most: a failed one before one that runs before those that are done.
        done, rounds: rounds that ended well, and all that have begun.
        start, end: of the first, and of the last where all have ended.
    """

    name: str
    state: str
    done: int
    rounds: int
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Progress:
    """A run at one moment.

    Attributes:
        state: of the run, by the API's names.
        steps: in the order in which they began.
        failed: name of the step that failed; empty: none is known.
        error: what is said about a run that did not end well.
    """

    state: str
    steps: tuple[Step, ...] = ()
    failed: str = ""
    error: str = ""


def progress(run: Any) -> Progress:
    """Return what an answer of the API tells about a run."""
    tasks = list((run.run_details and run.run_details.task_details) or [])
    shown: dict[str, list[Any]] = {}
    for task in sorted(tasks, key=lambda task: (_begin(task) is None, _begin(task) or 0)):
        if _is_step(task):
            shown.setdefault(task.display_name, []).append(task)
    failed = _failed(tasks)
    said = next((text for text in (_said(failed), _said(run)) if text), "")
    steps = tuple(_step(name, rounds) for name, rounds in shown.items())
    return Progress(_state(run), steps, (failed and failed.display_name) or "", said)


def _state(entity: Any) -> str:
    state = str(entity.state or _UNKNOWN).upper()
    return _UNKNOWN if state == "RUNTIME_STATE_UNSPECIFIED" else state


def _is_step(task: Any) -> bool:
    """Leave out what KFP adds for itself: the root, and the pods that start a step's own."""
    name = task.display_name or ""
    return bool(name) and name not in {"root", "executor"} and not name.endswith("-driver")


def _begin(task: Any) -> float | None:
    moment = task.start_time or task.create_time
    return moment.timestamp() if moment else None


def _step(name: str, rounds: list[Any]) -> Step:
    states = [_state(task) for task in rounds]
    state = min(states, key=lambda state: _ORDER.index(state) if state in _ORDER else 0)
    ends = [task.end_time for task in rounds]
    return Step(
        name=name,
        state=state,
        done=sum(state in {SUCCEEDED, "SKIPPED"} for state in states),
        rounds=len(rounds),
        start=rounds[0].start_time or rounds[0].create_time,
        end=max(ends) if all(ends) and state in ENDS else None,
    )


def _failed(tasks: Iterable[Any]) -> Any:
    """Return the task that failed by itself: those that hold it, up to the root, are marked failed with it."""
    failed = [task for task in tasks if _state(task) == "FAILED"]
    holders = {task.parent_task_id for task in failed}
    own = [task for task in failed if task.task_id not in holders] or failed
    own.sort(key=lambda task: (not _said(task), task.end_time is None, task.end_time and task.end_time.timestamp()))
    return own[0] if own else None


def _said(entity: Any) -> str:
    """Return the error of a run or task, or else the last one in its history."""
    if entity is None:
        return ""
    errors = [entity.error, *(status.error for status in reversed(entity.state_history or []))]
    return next((" ".join(error.message.split()) for error in errors if error and error.message), "")


def follow(
    client: "ClusterClient",
    run_id: str,
    show: Callable[[Progress], None],
    note: Callable[[str], None],
    *,
    pause_s: float = 1.0,
    patience_s: float = _PATIENCE_S,
) -> Progress:
    """Show a run until it has ended, and return what it came to.

    Args:
        client: of the cluster.
        run_id: KFP's.
        show: gets the run after each look.
        note: gets a line when the connection is lost, and another when it is back.
        pause_s: seconds between the first two looks; later pauses grow to ten seconds.
        patience_s: seconds without an answer after which waiting ends.

    Raises:
        ClusterError: the cluster refuses, or has not answered for so long. The run goes on.
    """
    lost = False

    def tell(error: Exception) -> None:
        nonlocal lost
        if not lost:
            note(f"{error}; the run goes on, trying again")
        lost = True

    look = Retry(
        predicate=if_exception_type(UnavailableError),
        initial=pause_s,
        maximum=max(_LONGEST_RETRY_S, pause_s),
        multiplier=2,
        timeout=patience_s,
        on_error=tell,
    )(lambda: progress(client.get_run(run_id)))
    while True:
        try:
            seen = look()
        except RetryError as error:
            raise ClusterError(f"{error.cause}; no better for {patience_s:.0f} seconds") from None
        if lost:
            note("the connection is back")
            lost = False
        show(seen)
        if seen.state in ENDS:
            return seen
        time.sleep(pause_s)
        pause_s = max(pause_s, min(1.2 * pause_s, _LONGEST_PAUSE_S))


def verdict(seen: Progress, client: "ClusterClient", reason: str = "") -> str:
    """Return in one line why a run did not end well; the failed step's own reason says more than what KFP saw of it."""
    what = f"{seen.failed} failed" if seen.failed else _OUTCOMES.get(seen.state, f"the run is {seen.state.lower()}")
    said = reason or seen.error
    return without_secrets(f"{what}: {said}" if said else what, client.connection)
