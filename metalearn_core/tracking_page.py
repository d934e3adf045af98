"""MLflow's own page: addresses that open on model training, and a view of the runs with what matters first."""

import base64
import json
import time
import zlib
from collections.abc import Mapping

VIEW = "metalearn-results"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("test/accuracy", "test/ci95", "validation/accuracy", "train_seconds")),
    *(f"tags.`{name}`" for name in ("selected", "promoted", "shape")),
    "attributes.`Dataset`",
)


def experiment_tags() -> dict[str, str]:
    """Return the tags of an experiment by which MLflow's page knows what it is, and offers our view of its runs.

    A view is what a person saves by *Views* on the page: JSON, compressed, in a tag of the experiment (MLflow 3.17).
    """
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _COLUMNS,
        "columnOrder": _COLUMNS,
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(1000 * time.time())
    view = {"name": "Results", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return {**_KIND, _VIEW_TAG: json.dumps(view)}


def runs_page(address: str, experiment: str, tags: Mapping[str, str]) -> str:
    """Return the address of an experiment's runs, in our view where the experiment's tags have it.

    Args:
        address: of the server, without a password.
        experiment: its id.
        tags: its tags.
    """
    view = f"&viewStateShareKey={VIEW}" if _VIEW_TAG in tags else ""
    return _page(address, f"experiments/{experiment}/runs") + view


def run_page(address: str, experiment: str, run_id: str) -> str:
    """Return the address of one run."""
    return _page(address, f"experiments/{experiment}/runs/{run_id}")


def models_page(address: str) -> str:
    """Return the address of the registered models."""
    return _page(address, "models")


def _page(address: str, place: str) -> str:
    """MLflow's page opens on its tools for language models unless it is told otherwise."""
    return f"{address.rstrip('/')}/#/{place}?workflowType=machine_learning"
