"""With KFP's MLflow plugin and without it, a pipeline run is one run in MLflow, by the same tags."""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from metalearn_core import tracking

KFP_TAGS = ("kfp.pipeline_run_id", "kfp.pipeline_run_url", "kfp.pipeline_id", "kfp.pipeline_version_id")


@dataclass
class Plugin:
    """What KFP's plugin does: a run for the pipeline, and nested ones for a loop, its iterations and its steps."""

    client: MlflowClient
    experiment: str
    pipeline_run: str

    def start(self) -> str:
        tags = {
            "kfp.pipeline_run_id": self.pipeline_run,
            "kfp.pipeline_run_url": f"/#/runs/details/{self.pipeline_run}",
            "kfp.pipeline_id": "pipeline",
            "kfp.pipeline_version_id": "version",
        }
        return self.client.create_run(self.experiment, run_name="few-shot run", tags=tags).info.run_id

    def nested(self, parent: str, *names: str) -> str:
        for name in names:
            tags = {"mlflow.parentRunId": parent}
            parent = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        return parent


@pytest.fixture
def plugin(client: MlflowClient, tmp_path) -> Plugin:
    return Plugin(client, client.create_experiment(f"plugin {tmp_path.name}"), f"kfp-{tmp_path.name}")


def test_a_step_that_has_a_run_of_its_own_attaches_to_the_pipelines(plugin, monkeypatch) -> None:
    root = plugin.start()
    monkeypatch.setenv("MLFLOW_RUN_ID", plugin.nested(root, "open-run"))
    assert tracking.open_parent_run("few-shot", plugin.pipeline_run, "name", {"way": 5}) == root
    monkeypatch.setenv("MLFLOW_RUN_ID", plugin.nested(root, "for-loop-1", "iteration-0", "meta-train"))
    assert tracking.find_parent_run(plugin.pipeline_run) == root
    child = tracking.start_child(root, "protonet")
    assert plugin.client.get_run(child).data.tags["mlflow.parentRunId"] == root


def test_the_plugins_run_is_used_too_where_steps_are_not_told_of_it(plugin, monkeypatch) -> None:
    root = plugin.start()
    plugin.nested(root, "open-run")
    assert tracking.open_parent_run("few-shot", plugin.pipeline_run, "name") == root
    assert tracking.find_parent_run(plugin.pipeline_run) == root


def test_the_plugins_tags_and_the_parameters_that_it_logged_stay(plugin, monkeypatch) -> None:
    root = plugin.start()
    step = plugin.nested(root, "open-run")
    plugin.client.log_param(root, "way", '"5"')
    monkeypatch.setenv("MLFLOW_RUN_ID", step)
    monkeypatch.setenv("METALEARN_KFP_URL", "https://elsewhere.example")
    before = plugin.client.get_run(root).data.tags
    tracking.open_parent_run("few-shot", plugin.pipeline_run, "name", {"way": 5}, {"kfp.pipeline_id": "another"})
    after = plugin.client.get_run(root)
    assert {name: after.data.tags[name] for name in KFP_TAGS} == {name: before[name] for name in KFP_TAGS}
    assert after.data.params == {"way": '"5"', "cfg/way": "5"}
    assert after.data.tags["metalearn.role"] == "pipeline"
    assert plugin.client.get_run(step).data.params == {}


def test_without_the_plugin_our_run_has_its_tags(client: MlflowClient, tmp_path, monkeypatch) -> None:
    run = f"kfp-{tmp_path.name}"
    monkeypatch.setenv("METALEARN_KFP_URL", "https://kubeflow.example/pipeline/")
    ids = {"kfp.pipeline_id": "p", "kfp.pipeline_version_id": "v"}
    tags = client.get_run(tracking.open_parent_run("few-shot", run, "name", tags=ids)).data.tags
    assert tags["kfp.pipeline_run_id"] == run
    assert tags["kfp.pipeline_run_url"] == f"https://kubeflow.example/pipeline/#/runs/details/{run}"
    assert (tags["kfp.pipeline_id"], tags["kfp.pipeline_version_id"]) == ("p", "v")


def test_on_a_cluster_whose_page_is_unknown_the_address_is_the_plugins_and_elsewhere_there_is_none(
    client: MlflowClient, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("METALEARN_KFP_URL", raising=False)
    here = client.get_run(tracking.open_parent_run("few-shot", f"a-{tmp_path.name}", "name")).data.tags
    assert "kfp.pipeline_run_url" not in here
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    there = client.get_run(tracking.open_parent_run("few-shot", f"b-{tmp_path.name}", "name")).data.tags
    assert there["kfp.pipeline_run_url"] == f"/#/runs/details/b-{tmp_path.name}"


def test_a_run_is_found_however_many_experiments_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tracking.prepare(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", "few-shot")
    run = tracking.open_parent_run("few-shot", "the pipeline run", "name")
    now = int(1000 * time.time()) + 1
    later = [(f"experiment {number}", "/nowhere", "active", now, now) for number in range(1001)]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        columns = "name, artifact_location, lifecycle_stage, creation_time, last_update_time"
        connection.executemany(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?)", later)
    assert tracking.find_parent_run("the pipeline run") == run
    assert tracking.latest_experiment().name == "few-shot"
