import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from metalearn_core import tracking
from metalearn_core.bundle import load_bundle, read_training_images
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.leakage import check_leakage
from metalearn_core.data.subset import split_hashes
from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.explanation.learner import LearnerExplanation
from metalearn_core.steps.requests import TrainingOrder, TrainingResources
from metalearn_core.steps.train_nodes import ResultTakenError
from metalearn_core.steps.training import TrainingRequest, carry_out, explanation_of, train_bundle, train_learner
from metalearn_core.storage.place import Place


def test_a_bundle_knows_the_images_that_it_was_trained_on(small_dataset: EpisodeDataset, tmp_path: Path) -> None:
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=8)
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}
    train_bundle(
        str(small_dataset.folder), item, request, str(tmp_path / "bundle"), checkpoints=str(tmp_path / "checkpoints")
    )
    images = read_training_images(tmp_path / "bundle")
    assert np.array_equal(images, np.unique(fingerprints(split_hashes(small_dataset, "train"))))
    train = small_dataset.manifest.of_split("train")
    seen = check_leakage(small_dataset, "train", set(), images)
    assert seen.class_digests == tuple(entry.digest for entry in train)


@pytest.mark.parametrize("other_run_goes_on", [True, False])
def test_a_result_that_another_run_has_taken_is_looked_for_again_and_made_where_there_is_none(
    small_dataset: EpisodeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    other_run_goes_on: bool,
) -> None:
    """Two runs want one training of several nodes: of the one job, the other run takes the result, or its job back."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.prepare(uri, tmp_path / "artifacts", "few-shot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "this")
    parent = tracking.open_parent_run("few-shot", "this", "name")
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=8)
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}
    what = (str(small_dataset.folder), small_dataset.digest, item, request, TrainingResources(), Place.at(bucket))
    orders: list[TrainingOrder] = []

    def taken_the_first_time(order: TrainingOrder) -> dict:
        orders.append(order)
        if len(orders) > 1:
            return carry_out(order)
        if other_run_goes_on:
            with monkeypatch.context() as elsewhere:
                elsewhere.setenv("METALEARN_CACHE", str(tmp_path / "another machine"))
                elsewhere.setenv("METALEARN_PIPELINE_RUN_ID", "other")
                tracking.open_parent_run("few-shot", "other", "name")
                train_learner(*what[:-1], Place.at(bucket))
        raise ResultTakenError("the nodes ended, and left no record.json")

    folder = train_learner(*what, taken_the_first_time)
    assert len(orders) == (1 if other_run_goes_on else 2)
    assert (folder / "bundle" / "weights.safetensors").is_file()
    client = MlflowClient(tracking_uri=uri)
    experiments = [client.get_experiment_by_name("few-shot").experiment_id]
    [child] = client.search_runs(experiments, f"tags.mlflow.parentRunId = '{parent}'")
    assert child.info.status == "RUNNING", "a training that goes on has not failed"


def test_answers_are_explained_beside_the_figures(small_dataset: EpisodeDataset, workshop, tmp_path: Path) -> None:
    learner, _ = load_bundle(workshop.make_bundle(tmp_path / "bundle", small_dataset))
    found = LearnerExplanation.model_validate(explanation_of(learner, small_dataset, workshop.PROTOCOL))
    assert len(found.map.points) == 8
    assert found.answers[0].nearest


def test_a_learner_that_cannot_be_explained_is_evaluated_all_the_same(
    small_dataset: EpisodeDataset, workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, _ = load_bundle(workshop.make_bundle(tmp_path / "bundle", small_dataset))

    class Other(type(learner)):
        def compared_features(self, state, x):
            raise KeyError("prototypes")

    learner.__class__ = Other
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    assert explanation_of(learner, small_dataset, workshop.PROTOCOL) is None
    [event] = map(json.loads, (tmp_path / "events").read_text().splitlines())
    assert event["kind"] == "warning"
    assert "protonet: the report goes without an explanation of its answers: KeyError: 'prototypes'" in event["text"]
