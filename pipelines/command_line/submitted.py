"""A submission from its start on: what is said of it, and how it is waited for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from metalearn_core.errors import MetalearnError
from pipelines.command_line.options import answers

if TYPE_CHECKING:
    from pipelines.cluster.client import ClusterClient
    from pipelines.cluster.schedule import Schedule
    from pipelines.cluster.submission import Order, Version
    from pipelines.cluster.view import RunView
    from pipelines.config import RunConfig

_INTERRUPTED, _TERMINATED = 130, 143


def start(
    client: "ClusterClient", version: "Version", order: "Order", plan: "Schedule | None", view: "RunView"
) -> dict[str, Any]:
    """Start the run or the schedule, and return what it is called and where it is seen."""
    from pipelines.cluster.submission import same_schedules, start_run, start_schedule

    if plan is not None:
        for other in same_schedules(client, order):
            page = client.connection.page("recurringrun", "details", other)
            view.note(f"a schedule of the same name goes on beside this one: {page}")
        recurring = start_schedule(client, version, order, plan)
        page = client.connection.page("recurringrun", "details", recurring)
        return {"recurring_run_id": recurring, "schedule": plan.__dict__, "page": page}
    run_id = start_run(client, version, order)
    return {"run_id": run_id, "state": "PENDING", "page": client.connection.page("runs", "details", run_id)}


def described(
    settings: "RunConfig", version: "Version", order: "Order", namespace: str | None, tracking_uri: str
) -> dict[str, Any]:
    """Return what is said of a submission beside what it started."""
    return {
        "mlflow_page": tracking_uri,
        "pipeline": version.__dict__,
        "experiment": {"id": order.experiment_id, "name": settings.experiment},
        "namespace": namespace,
        "name": order.name,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print what was started, and where it is seen."""
    pipeline = summary["pipeline"]
    there = "uploaded" if pipeline["uploaded"] else "was there"
    started = f"schedule {summary['recurring_run_id']}" if "schedule" in summary else f"run {summary['run_id']}"
    for line in (
        f"version {pipeline['name']} of the pipeline {there}",
        f"{started}: {summary['page']}",
        f"MLflow: {summary['mlflow_page']} (experiment {summary['experiment']['name']})",
    ):
        answers.print(line, markup=False, soft_wrap=True)


def await_end(client: "ClusterClient", summary: dict[str, Any], view: "RunView") -> None:
    """Show the run until it has ended; raise where it did not end well."""
    from pipelines.cluster.tracked import tracked_run
    from pipelines.cluster.waiting import SUCCEEDED, Progress, follow, verdict

    def show(seen: Progress) -> None:
        summary["state"] = seen.state
        summary["steps"] = [{"name": step.name, "state": step.state} for step in seen.steps]
        view.show(seen)

    look = f"run {summary['run_id']} goes on: {summary['page']}"
    try:
        with signals_told(look), view.shown():
            seen = follow(client, summary["run_id"], show, view.note)
    except MetalearnError as error:
        if isinstance(error, StoppedError):
            raise
        raise MetalearnError(f"{error}; {look}") from None
    tracked = tracked_run(summary["mlflow_page"], summary["run_id"])
    summary["mlflow_page"] = tracked.page
    view.note(f"MLflow: {tracked.page}")
    if seen.state != SUCCEEDED:
        reason = verdict(seen, client, tracked.reason)
        summary.update(failed_step=seen.failed or None, error=reason)
        raise MetalearnError(f"{reason} ({summary['page']})")


@contextmanager
def signals_told(look: str) -> Iterator[None]:
    """Say, where a signal ends this process, what goes on without it: the same command would start a second run."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # Ctrl-C, or SIGTERM
        interrupted = isinstance(error, KeyboardInterrupt)
        raise StoppedError(f"{'interrupted' if interrupted else 'terminated'}: {look}", interrupted) from None


class StoppedError(MetalearnError):
    """A signal ended this process, and nothing else."""

    def __init__(self, text: str, interrupted: bool) -> None:
        super().__init__(text)
        self.exit_status = _INTERRUPTED if interrupted else _TERMINATED
