"""What MLflow knows of a run on the cluster."""

from pathlib import Path

import pytest

from metalearn_core import tracking
from pipelines.cluster.tracked import TrackedRun, tracked_run


def test_a_failed_run_is_found_with_its_page_and_the_steps_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.prepare(uri, tmp_path / "artifacts", "parts")
    run_id = tracking.open_parent_run("parts", "kfp-run-7", "a run")
    tracking.end_failed(run_id, "too few classes")
    found = tracked_run(uri, "kfp-run-7")
    assert found.page.startswith(f"{uri}/#/experiments/")
    assert f"/runs/{run_id}?" in found.page
    assert found.reason == "too few classes"
    assert tracked_run(uri, "kfp-run-8") == TrackedRun(uri)


def test_a_server_that_is_not_reached_from_here_still_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracked_run("http://mlflow.invalid:5000", "kfp-run-7") == TrackedRun("http://mlflow.invalid:5000")
