"""Runs on a server whose answers get lost, as they do when it is killed between its work and its answer."""

from collections.abc import Callable

import pytest

from infra.local.stack import Stack
from metalearn_core import tracking
from tests.fault_proxy import FaultProxy

pytestmark = pytest.mark.slow


@pytest.fixture
def lossy(team_stack: Stack, fault_proxy: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy before the MLflow server that loses a third of the answers, and of the requests none."""
    for name, value in team_stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    proxy = fault_proxy(team_stack.tracking.uri, rate=0.33, seed=5, faults=("lost",), own_host=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    return proxy


def test_a_lost_answer_makes_no_second_run(lossy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    parent = tracking.open_parent_run("lost answers", "one", "parent")
    children = [tracking.start_child(parent, f"child {number}") for number in range(8)]
    tracking.set_outcome(parent, "FINISHED")
    assert lossy.faults["lost"] >= 10
    lossy.rate = 0
    client = MlflowClient()
    experiment = client.get_experiment_by_name("lost answers").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.run_id for run in runs} == {parent, *children}
    deleted = client.search_runs([experiment], run_view_type=2)
    assert deleted, "no answer to the making of a run was lost: take another seed"
