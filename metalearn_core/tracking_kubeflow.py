"""What a run in MLflow has to do with Kubeflow Pipelines, whose own MLflow plugin may have made it.

The plugin makes a run for each pipeline run, tagged with its id, and below it one for each loop, iteration and step.
Where an administrator lets it, each step is told the id of its own run: MLFLOW_RUN_ID. The pipeline's is the topmost.
"""

import os
from typing import Any

from metalearn_core.errors import MetalearnError
from metalearn_core.tracking_outcome import PARENT_TAG
from metalearn_core.tracking_server import is_missing, pages, shown, tracking_uri

ATTACHED_VARIABLE = "MLFLOW_RUN_ID"
PAGE_VARIABLE = "METALEARN_KFP_URL"
"""Where Kubeflow Pipelines' page is, as https://kubeflow.example/pipeline."""
PIPELINE_RUN_TAG = "kfp.pipeline_run_id"
PIPELINE_RUN_URL_TAG = "kfp.pipeline_run_url"
_CLUSTER_VARIABLE = "KUBERNETES_SERVICE_HOST"  # every pod has it
_DEEPEST = 32


def run_page(pipeline_run_id: str) -> str | None:
    """Return the address of a pipeline run's page; as the plugin has it without the page's host where that is unknown.

    None where there is no such page, as on a laptop.
    """
    base = os.environ.get(PAGE_VARIABLE, "").rstrip("/")
    if not base and _CLUSTER_VARIABLE not in os.environ:
        return None
    return f"{base}/#/runs/details/{pipeline_run_id}"


def kubeflow_tags(pipeline_run_id: str) -> dict[str, str]:
    """Return the tags that say to which pipeline run an MLflow run belongs, by the plugin's names."""
    page = run_page(pipeline_run_id)
    return {PIPELINE_RUN_TAG: pipeline_run_id, **({PIPELINE_RUN_URL_TAG: page} if page else {})}


def missing_tags(run: Any, tags: dict[str, str]) -> dict[str, str]:
    """Return the tags without those of Kubeflow that a run has already: its plugin knows them better."""
    return {name: value for name, value in tags.items() if not (name.startswith("kfp.") and name in run.data.tags)}


def attached_run(mlflow_client: Any) -> str | None:
    """Return the id of the run of the whole pipeline, above the one that MLFLOW_RUN_ID names; None where it is not set.

    Raises:
        MetalearnError: MLFLOW_RUN_ID names no run of this tracking server.
    """
    run_id = os.environ.get(ATTACHED_VARIABLE)
    if not run_id:
        return None
    run = _existing(mlflow_client, run_id)
    for _ in range(_DEEPEST):
        above = run.data.tags.get(PARENT_TAG)
        if not above:
            break
        run = _existing(mlflow_client, above)
    return str(run.info.run_id)


def tagged_run(mlflow_client: Any, pipeline_run_id: str) -> str | None:
    """Return the id of the first run that is tagged with a pipeline run's id, the plugin's or ours; None without."""
    experiments = [experiment.experiment_id for experiment in pages(mlflow_client.search_experiments)]
    quoted = pipeline_run_id.replace("'", "")
    runs = mlflow_client.search_runs(
        experiments, f"tags.`{PIPELINE_RUN_TAG}` = '{quoted}'", order_by=["attributes.start_time ASC"]
    )
    return next((str(run.info.run_id) for run in runs if PARENT_TAG not in run.data.tags), None)


def _existing(mlflow_client: Any, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        raise MetalearnError(f"{ATTACHED_VARIABLE}: there is no run {run_id} at {shown(tracking_uri())}") from None
