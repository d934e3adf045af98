"""How runs in MLflow end: with a status and a reason, also those whose process was killed before it could say so."""

import os
from typing import Any, Literal

from metalearn_core.lifetime import OWNER_VARIABLE, host_value, owner_runs
from metalearn_core.tracking_server import LONGEST_TAG, client, explained

PARENT_TAG = "mlflow.parentRunId"
ROLE_TAG = "metalearn.role"
REASON_TAG = "metalearn.reason"
OWNER_TAG = "metalearn.owner"
HOST_TAG = "metalearn.host"
ORPHANED = "its process ended early: the same command goes on"

Status = Literal["FINISHED", "FAILED"]


def set_outcome(run_id: str, status: Status, reason: str = "") -> None:
    """End a run with its status, and tag it with the reason in one line; without one, an earlier reason goes."""
    mlflow_client = client()
    with explained():
        if reason:
            mlflow_client.set_tag(run_id, REASON_TAG, " ".join(reason.split())[:LONGEST_TAG])
        elif REASON_TAG in mlflow_client.get_run(run_id).data.tags:
            mlflow_client.delete_tag(run_id, REASON_TAG)
        mlflow_client.set_terminated(run_id, status)


def reopen(run_id: str) -> None:
    """Let a run go on that had ended: the step that it is about is tried again."""
    mlflow_client = client()
    with explained():
        if REASON_TAG in mlflow_client.get_run(run_id).data.tags:
            mlflow_client.delete_tag(run_id, REASON_TAG)
        mlflow_client.update_run(run_id, status="RUNNING")


def end_children(parent_id: str, status: Status, reason: str = "") -> None:
    """End the runs below another that still run, as `set_outcome` does; those that have ended keep their outcome."""
    mlflow_client = client()
    with explained():
        experiment = mlflow_client.get_run(parent_id).info.experiment_id
        query = f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{parent_id}'"
        children = mlflow_client.search_runs([experiment], query)
    for child in children:
        set_outcome(child.info.run_id, status, reason)


def end_failed(run_id: str, reason: str) -> None:
    """End a pipeline run and those below it as failed, where they still run: what ended before keeps its outcome."""
    end_children(run_id, "FAILED", reason)
    mark_failed(run_id, reason)


def mark_failed(run_id: str, reason: str) -> None:
    """End a pipeline run as failed where it still runs; those below it go on: other learners train beside this step."""
    if _still_running(client(), run_id):
        set_outcome(run_id, "FAILED", reason)


def owner_tags() -> dict[str, str]:
    """Return the tags that say to which process on which machine a run belongs; none where nobody owns this process."""
    owner = os.environ.get(OWNER_VARIABLE)
    return {OWNER_TAG: owner, HOST_TAG: host_value()} if owner else {}


def end_orphans(run_id: str) -> None:
    """End, as failed, the pipeline runs beside this one whose owner on this machine is gone, and all runs below them.

    A killed process ends no run, and MLflow would show it as running for ever. Where this process has no owner, as on
    a cluster, or belongs to another machine than a run, nothing can be said of that run's owner, and nothing is done.

    Args:
        run_id: a pipeline run; those of its experiment are looked at.
    """
    if not os.environ.get(OWNER_VARIABLE):
        return
    mlflow_client = client()
    query = f"attributes.status = 'RUNNING' and tags.`{ROLE_TAG}` = 'pipeline' and tags.`{HOST_TAG}` = '{host_value()}'"
    with explained():
        experiment = mlflow_client.get_run(run_id).info.experiment_id
        running = mlflow_client.search_runs([experiment], query)
    for run in running:
        other = run.info.run_id
        owned = other == run_id or owner_runs(run.data.tags.get(OWNER_TAG, ""))
        if not owned and _still_running(mlflow_client, other):
            end_failed(other, ORPHANED)


def _still_running(mlflow_client: Any, run_id: str) -> bool:
    """Return whether a run has not ended since it was found, while its owner still was there to end it."""
    with explained():
        return bool(mlflow_client.get_run(run_id).info.status == "RUNNING")
