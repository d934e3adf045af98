"""What MLflow knows of a run on the cluster: its page, and why it failed."""

from contextlib import suppress
from dataclasses import dataclass

from metalearn_core.errors import MetalearnError


@dataclass(frozen=True)
class TrackedRun:
    """The MLflow run of a pipeline run.

    Attributes:
        page: its address; the server's where the run is not known.
        reason: why it failed, in the failed step's own words; empty where that is not known.
    """

    page: str
    reason: str = ""


def tracked_run(uri: str, pipeline_run_id: str) -> TrackedRun:
    """Return the MLflow run of KFP's run, as far as the tracking server can be asked from here."""
    from metalearn_core.tracking_kubeflow import tagged_run
    from metalearn_core.tracking_outcome import REASON_TAG
    from metalearn_core.tracking_page import run_page
    from metalearn_core.tracking_server import client, explained, impatience

    with suppress(MetalearnError), impatience(), explained(uri):
        found = tagged_run(client(uri), pipeline_run_id)
        if found:
            run = client(uri).get_run(found)
            return TrackedRun(run_page(uri, run.info.experiment_id, found), run.data.tags.get(REASON_TAG, ""))
    return TrackedRun(uri)
