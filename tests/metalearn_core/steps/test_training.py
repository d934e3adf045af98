import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from metalearn_core import tracking
from metalearn_core.bundle import load_bundle, read_training_images
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.leakage import check_leakage
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.data.subset import split_hashes
from metalearn_core.errors import MetalearnError
from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.explanation.learner import LearnerExplanation
from metalearn_core.steps.requests import EvaluationRequest, TrainingOrder, TrainingResources
from metalearn_core.steps.train_nodes import ResultTakenError
from metalearn_core.steps.training import (
    EVALUATION,
    TrainingRequest,
    carry_out,
    evaluate_learner,
    explanation_of,
    train_bundle,
    train_here,
    train_learner,
)
from metalearn_core.storage.place import Place
from metalearn_core.training.termination import TrainingStoppedError


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


@pytest.mark.parametrize(
    ("error", "timeout"),
    [(TrainingStoppedError("maml: stopped"), "3"), (KeyboardInterrupt(), "3"), (MetalearnError("diverged"), "30")],
)
def test_a_training_that_has_to_end_waits_seconds_for_the_tracking_server(
    small_dataset: EpisodeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: MlflowClient,
    error: BaseException,
    timeout: str,
) -> None:
    timeouts: list[str] = []
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "ended")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    tracking.open_parent_run("few-shot", "ended", "name")
    request = TrainingRequest(way=3, shot=1, query=3, episodes=8)
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}

    def ended(_: TrainingOrder) -> dict:
        raise error

    def told(*_: object) -> None:
        timeouts.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    monkeypatch.setattr(tracking, "set_outcome", told)
    with pytest.raises(type(error)):
        train_learner(
            str(small_dataset.folder),
            small_dataset.digest,
            item,
            request,
            TrainingResources(),
            Place.at(tmp_path / "storage"),
            ended,
        )
    assert timeouts == [timeout]


@pytest.mark.parametrize(
    ("learner", "backbone", "smaller"),
    [
        ("maml", "conv4", "--train-way, --train-query, backbone.width"),
        ("relationnet", "conv4", "--train-way, --train-query, relationnet.pretrain_batch_size, backbone.width"),
        ("transfer", "resnet12", "transfer.batch_size, backbone.widths"),
    ],
)
def test_where_memory_does_not_hold_a_training_it_is_said_what_to_make_smaller(
    small_dataset: EpisodeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learner: str,
    backbone: str,
    smaller: str,
) -> None:
    monkeypatch.setattr("metalearn_core.training.loop.fit", lambda *_, **__: torch.empty(2**50))
    order = TrainingOrder(
        dataset=str(small_dataset.folder),
        item={"learner": learner, "backbone": backbone},
        request=TrainingRequest(way=3, shot=1, query=3, episodes=8),
        resources=TrainingResources(),
        checkpoints=str(tmp_path / "checkpoints"),
        bundle=tmp_path / "bundle",
    )
    text = f"{learner}: the memory of this machine does not hold its training: lower one of {smaller}"
    with pytest.raises(MetalearnError) as caught:
        train_here(order)
    assert str(caught.value) == text


def test_answers_are_explained_beside_the_figures(small_dataset: EpisodeDataset, workshop, tmp_path: Path) -> None:
    learner, _ = load_bundle(workshop.make_bundle(tmp_path / "bundle", small_dataset))
    found = LearnerExplanation.model_validate(explanation_of(learner, small_dataset, workshop.PROTOCOL))
    assert len(found.map.points) == 8
    assert found.answers[0].nearest


def test_answers_are_explained_without_the_classes_that_the_accuracy_is_without(
    small_dataset: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is evaluated on another split of its data, in which a class that it was trained on is a test class."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.prepare(uri, tmp_path / "artifacts", "few-shot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "this")
    tracking.open_parent_run("few-shot", "this", "name")
    entries = small_dataset.manifest.classes
    pairs = tuple((entry.name, "test" if entry.name == "train0" else entry.split) for entry in entries)
    options = BuildOptions(image_size=12, split_file=pairs, rotations="none")
    build_dataset(str(small_dataset.folder.parent / "source"), tmp_path / "other", options, workers=1)
    other = EpisodeDataset.open(tmp_path / "other")
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=8)
    where = (str(small_dataset.folder), small_dataset.digest)
    training = train_learner(*where, item, request, TrainingResources(), Place.at(tmp_path / "storage"))
    folder = evaluate_learner(
        str(tmp_path / "other"),
        other.digest,
        training,
        EvaluationRequest(way=3, shot=1, query=3, episodes=20),
        Place.at(tmp_path / "storage"),
    )
    found = json.loads((folder / EVALUATION).read_text())
    assert found["test"]["leakage"]["class_names"] == ["train0"]
    explained = LearnerExplanation.model_validate(found["explanation"])
    unseen = {entry.id for entry in other.manifest.of_split("test") if entry.name != "train0"}
    assert {point.class_id for point in explained.map.points} == unseen
    assert {answer.query.class_id for answer in explained.answers} <= unseen


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_a_learner_that_is_tested_in_another_batch_norm_mode_than_its_own_is_named(
    small_dataset: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    tracking.prepare(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts", "few-shot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "this")
    tracking.open_parent_run("few-shot", "this", "name")
    item = {"learner": "protonet", "backbone": "mlp", "options": {"batch_norm": mode}, "backbone_options": {}}
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=2)
    where, storage = (str(small_dataset.folder), small_dataset.digest), Place.at(tmp_path / "storage")
    training = train_learner(*where, item, request, TrainingResources(), storage)
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    evaluate_learner(*where, training, EvaluationRequest(way=3, shot=1, query=3, episodes=20), storage)
    events = map(json.loads, (tmp_path / "events").read_text().splitlines())
    told = [event["text"] for event in events if event["kind"] == "warning"]
    words = "protonet: trained transductive, tested inductive; `evaluate --batch-norm transductive` tests its own mode"
    assert told == ([] if mode == "inductive" else [words])


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
