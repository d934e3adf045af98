"""Tell a webhook what a pipeline run came to, where METALEARN_WEBHOOK_URL names one; the run does not depend on it.

The address is a secret, as those of chat services are: it is written nowhere, also not as part of an error.
"""

import os
import sys
import time
from typing import Any, Literal

from metalearn_core import tracking_page
from metalearn_core.data.manifest import Record
from metalearn_core.events import emit, is_logged
from metalearn_core.tracking_kubeflow import run_page
from metalearn_core.tracking_server import shown

WEBHOOK_VARIABLE = "METALEARN_WEBHOOK_URL"
_ATTEMPTS = 3
_TIMEOUT_S = (3.05, 5)
_WAIT_S = 0.5
_TOO_MANY = 429
_SERVER_ERROR = 500
_REFUSED = 300


class Outcome(Record):
    """What a run came to; sent as a JSON object.

    Attributes:
        run: the MLflow run's id; None where it was not made.
        pipeline_run: KFP's id of the pipeline run.
        status: of the run; a step that failed may be tried again by Kubeflow.
        step: that says so: the one that failed, or the last.
        reason: one line.
        links: `mlflow` and `kubeflow`, the pages of the run, where they are known.
    """

    run: str | None
    pipeline_run: str
    status: Literal["finished", "failed"]
    step: str
    reason: str
    links: dict[str, str] = {}  # noqa: RUF012


def announce(
    status: Literal["finished", "failed"], step: str, reason: str, *, run_id: str | None, pipeline_run: str
) -> None:
    """Send the outcome of a run to the webhook, if there is one; what goes wrong is a warning.

    Args:
        status: of the run.
        step: that says so.
        reason: one line.
        run_id: of the MLflow run.
        pipeline_run: KFP's id.
    """
    address = os.environ.get(WEBHOOK_VARIABLE)
    if not address:
        return
    links = {"mlflow": _mlflow_page(run_id), "kubeflow": run_page(pipeline_run)}
    outcome = Outcome(
        run=run_id,
        pipeline_run=pipeline_run,
        status=status,
        step=step,
        reason=shown(reason),
        links={name: link for name, link in links.items() if link and link.startswith("http")},
    )
    problem = _send(address, outcome.model_dump())
    if problem:
        emit("warning", step, text=f"the webhook was not told: {problem}")
        if not is_logged():
            sys.stderr.write(f"{step}: the webhook was not told: {problem}\n")


def _send(address: str, body: dict[str, Any]) -> str | None:
    """Post a JSON object, a few times where that may help; return what went wrong, without the address."""
    import requests

    if not address.startswith(("http://", "https://")):
        return f"{WEBHOOK_VARIABLE} is no http address"
    problem = None
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _WAIT_S)
        try:
            # a retry by urllib3 would write the address to the log, and a redirect would hand the message on
            answer = requests.post(address, json=body, timeout=_TIMEOUT_S, allow_redirects=False)
        except (requests.ConnectionError, requests.Timeout) as error:
            problem = type(error).__name__
        except (requests.RequestException, ValueError, UnicodeError) as error:
            return type(error).__name__
        else:
            if answer.status_code < _REFUSED:
                return None
            problem = f"it answered {answer.status_code}"
            if answer.status_code < _SERVER_ERROR and answer.status_code != _TOO_MANY:
                return problem
    return problem


def _mlflow_page(run_id: str | None) -> str | None:
    """Return the address of a run's page on a tracking server; a database has none."""
    from metalearn_core.tracking_server import client, tracking_uri

    if not run_id or not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        return None
    try:
        experiment = client().get_run(run_id).info.experiment_id
    except Exception:  # the server may be what failed
        return None
    return tracking_page.run_page(shown(tracking_uri()), experiment, run_id)
