"""A training has one run in MLflow for each pipeline run, however often its step is tried."""

import pytest
from mlflow import MlflowClient

from metalearn_core import tracking
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Manifest
from metalearn_core.steps.children import child_of, start_training

ITEM = {"learner": "maml", "options": {}, "backbone": "conv4", "backbone_options": {}}
REQUEST = {"way": 5, "shot": 1, "query": 15, "seed": 0}


@pytest.fixture
def client(tmp_path, monkeypatch) -> MlflowClient:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.prepare(uri, tmp_path / "artifacts", "few-shot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "kfp-run")
    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def manifest(small_dataset: EpisodeDataset) -> Manifest:
    return small_dataset.manifest


def test_a_step_that_is_tried_again_goes_on_with_its_run(client: MlflowClient, manifest: Manifest) -> None:
    parent = tracking.open_parent_run("few-shot", "kfp-run", "name")
    first = start_training(ITEM, REQUEST, "/data", manifest, "key")
    other = start_training(ITEM, REQUEST, "/data", manifest, "another key")
    tracking.log_metrics(first, {"validation/accuracy": 0.5}, step=1)
    tracking.end_failed(parent, "meta_train: the node went away")
    assert start_training(ITEM, REQUEST, "/data", manifest, "key") == first
    run = client.get_run(first)
    assert run.info.status == "RUNNING"
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == [manifest.digest]
    assert "metalearn.reason" not in run.data.tags
    assert run.data.metrics == {"validation/accuracy": 0.5}
    assert client.get_run(other).info.status == "FAILED"
    training = {"key": "key", "run_id": first, "item": ITEM, "request": REQUEST, "dataset_digest": manifest.digest}
    assert child_of(training).run_id == first


def test_a_training_that_another_pipeline_run_made_gets_a_run_here(
    client: MlflowClient, manifest: Manifest, monkeypatch
) -> None:
    tracking.open_parent_run("few-shot", "kfp-run", "name")
    first = start_training(ITEM, REQUEST, "/data", manifest, "key")
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "next-run")
    tracking.open_parent_run("few-shot", "next-run", "name")
    training = {"key": "key", "run_id": first, "item": ITEM, "request": REQUEST, "dataset_digest": manifest.digest}
    child = child_of(training)
    assert child.run_id != first
    assert client.get_run(child.run_id).data.tags["cached_from"] == first
