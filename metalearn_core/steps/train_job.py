"""Train one learner on several machines of a cluster: a TrainJob of Kubeflow Trainer, asked for, awaited and read."""

from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.job_request import RUN_ANNOTATION, JobRequest, train_job
from metalearn_core.steps.requests import TrainingOrder
from metalearn_core.steps.train_nodes import find_result, leave_order, reason_left, take_result
from metalearn_core.steps.trainer_jobs import FAILED, UNDER_WAY, Job, Jobs, explained
from metalearn_core.training.termination import sigterm_flag

_POLL_S = 5.0


def train_in_job(order: TrainingOrder, request: JobRequest, poll_s: float = _POLL_S) -> dict[str, Any]:
    """Train as ordered on several machines, and return the record of the training.

    The job's name tells the training. One that is under way, of an earlier attempt of this step or of another pipeline
    run, is awaited, not started twice, and a result that its machines have left is taken. When this process is asked to
    end before the job, the job is removed if this pipeline run started it: its checkpoints stay. Under KFP's launcher,
    which ends at once, it is killed without being asked, and the job goes on.

    Raises:
        ResultTakenError: the job is over, and its result is not, or no longer, where its machines leave it.
        MetalearnError: the SDK or Kubeflow Trainer is not there, the step may not use it, or the job failed.
    """
    with explained(), sigterm_flag() as stop:
        jobs = Jobs(f"metalearn-{PurePosixPath(order.checkpoints).name[:16]}")
        record = find_result(order)
        if record is not None:
            return record
        job = _job_under_way(jobs, order, request)
        emit("note", "meta_train", text=f"TrainJob {jobs.name}: {request.nodes} nodes")
        try:
            status = jobs.wait(stop, poll_s)
        except BaseException:
            with suppress(Exception):
                _remove_own(jobs, job)
            raise
        if status == FAILED:
            reason = reason_left(order) or jobs.last_lines()
            raise MetalearnError(
                f"TrainJob {jobs.name} failed: {reason}: run it again, and it goes on from its checkpoint"
            )
    record = take_result(order)
    with suppress(Exception):
        _remove_own(jobs, job)
    return record


def _job_under_way(jobs: Jobs, order: TrainingOrder, request: JobRequest) -> Job:
    """Return the job that is under way for a training; where there is none, start it."""
    while True:
        found = jobs.find()
        if found is not None and found.status == UNDER_WAY:
            return found
        if found is not None:
            jobs.remove(found)
        address = leave_order(order)
        started = jobs.start(train_job(jobs.name, address, order.resources.processes, request))
        if started is not None:
            return started


def _remove_own(jobs: Jobs, job: Job) -> None:
    """Remove a job that this pipeline run started; another run may still wait for its own."""
    if job.annotations.get(RUN_ANNOTATION) == pipeline_run_id():
        jobs.remove(job)
