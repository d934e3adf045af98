import json
from pathlib import Path

import numpy as np
import pytest

from metalearn_core.bundle import load_bundle, read_training_images
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.subset import seen_classes, split_hashes
from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.explanation.learner import LearnerExplanation
from metalearn_core.steps.training import TrainingRequest, explanation_of, train_bundle


def test_a_bundle_knows_the_images_that_it_was_trained_on(small_dataset: EpisodeDataset, tmp_path: Path) -> None:
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=8)
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}
    train_bundle(
        str(small_dataset.folder), item, request, str(tmp_path / "bundle"), checkpoints=str(tmp_path / "checkpoints")
    )
    images = read_training_images(tmp_path / "bundle")
    assert np.array_equal(images, np.unique(fingerprints(split_hashes(small_dataset, "train"))))
    train = small_dataset.manifest.of_split("train")
    assert seen_classes(small_dataset, "train", set(), images) == {entry.digest for entry in train}


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
