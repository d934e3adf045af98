"""Classifiers that are kept: all that they hold is counted, and those of the server's own stay."""

import numpy as np
import pytest

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.model import load_model
from metalearn_core.serving.classifiers import Classifiers

SPEC = DatasetSpec(
    modality="vector", example_shape=(4,), dtype="float32", mean=(0.0,) * 4, std=(1.0,) * 4, train_classes=20
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    description = LearnerSpec(learner="protonet", backbone="mlp", backbone_options={"hidden": (2,)})
    made, folder = make_learner(description, SPEC), tmp_path_factory.mktemp("model") / "b"
    save_bundle(folder, made, description, episode=EpisodeShape(2, 1, 5), lineage={"dataset_digest": "d"})
    return load_model(folder)


def adapted(model, labels):
    return model.adapt(np.random.default_rng(0).normal(size=(len(labels), 4)), labels)


def test_small_classifiers_take_more_than_their_tensors(model):
    small = adapted(model, ["a", "b"])
    assert small.nbytes < 200
    kept = Classifiers(100_000, {})
    for number in range(200):
        kept.keep(str(number), small)
    assert 2 <= len(kept) <= 20


def test_labels_are_counted(model):
    short, long = (adapted(model, [f"{number:0{size}d}" for number in range(100)]) for size in (3, 2000))
    assert short.nbytes == long.nbytes
    kept = Classifiers(500_000, {})
    for number in range(10):
        kept.keep(f"short {number}", short)
    assert len(kept) == 10
    for number in range(10):
        kept.keep(f"long {number}", long)
    assert len(kept) == 2


def test_what_goes_is_counted_no_longer(model):
    kept = Classifiers(30_000, {})
    for number in range(50):
        kept.keep(str(number % 7), adapted(model, ["a", "b"]))
    assert len(kept) == 3
    assert [number for number in range(7) if kept.find(str(number))] == [0, 5, 6]


def test_a_lasting_classifier_makes_no_room(model):
    own = adapted(model, ["a", "b"])
    kept = Classifiers(0, {"own": own})
    for number in range(3):
        kept.keep(str(number), adapted(model, ["a", "b"]))
    assert kept.find("own") is own
    assert kept.find("2") is not None
    assert kept.find("1") is None
