import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from metalearn_core.bundle import load_bundle
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.subset import split_hashes, without_classes
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Evaluation, Protocol, evaluate, evaluate_bundle, make_protocol
from metalearn_core.evaluation.scoring import evaluate_episodes
from metalearn_core.evaluation.statistics import t_interval
from metalearn_core.learners import LearnerSpec, make_learner

PROTOCOL = Protocol(way=5, shot=1, query=3, episodes=120, seed=7)


@pytest.fixture(scope="module")
def evaluation(dataset):
    learner = make_learner(LearnerSpec(learner="protonet", backbone_options={"width": 16}), dataset.spec, seed=1)
    return evaluate(learner, dataset, PROTOCOL)


def stream(dataset, domain=None):
    return EpisodeSampler(dataset, "test", PROTOCOL.shape, seed=PROTOCOL.seed, domain=domain)


def test_accuracy_and_interval_are_those_of_the_protocols_episodes(dataset, protonet, evaluation):
    scores = evaluate_episodes(protonet, stream(dataset), 120)
    interval = t_interval(scores.accuracy)
    assert (evaluation.accuracy, evaluation.ci95) == pytest.approx((interval.mean, interval.half_width))
    assert evaluation.loss == pytest.approx(scores.loss.mean(), rel=1e-5)
    assert 0.3 < evaluation.accuracy < 0.99
    assert (evaluation.learner, evaluation.dataset_digest) == ("protonet", dataset.digest)
    assert evaluation.protocol == PROTOCOL


def test_new_classes_are_less_certain_than_these(evaluation):
    assert evaluation.ci95_classes > evaluation.ci95
    assert "18 test classes" in evaluation.ci95_classes_method
    assert "3 domains" in evaluation.ci95_classes_method


def test_domains_have_episodes_of_their_own_and_a_small_one_a_reason(dataset, protonet, evaluation):
    assert set(evaluation.by_domain) == {"wide", "broad", "tiny"}
    assert evaluation.by_domain["tiny"] is None
    assert "2 classes" in evaluation.by_domain_reason["tiny"]
    wide = evaluation.by_domain["wide"]
    assert wide.episodes == 50, "half of 120 episodes shared out among two domains, but 50 at the least"
    assert wide.accuracy == pytest.approx(evaluate_episodes(protonet, stream(dataset, "wide"), 50).accuracy.mean())


def test_domains_can_be_left_out(dataset, protonet):
    result = evaluate(protonet, dataset, PROTOCOL.model_copy(update={"domain_episodes": 0}))
    assert result.by_domain == {}


def test_classes_add_up_to_the_whole(dataset, evaluation):
    queries = sum(one.queries for one in evaluation.by_class)
    right = sum(one.accuracy * one.queries for one in evaluation.by_class)
    assert queries == 120 * 5 * 3
    assert right / queries == pytest.approx(evaluation.accuracy)
    assert [(one.class_id, one.rotation) for one in evaluation.by_class] == sorted(
        (entry.id, rotation) for entry in dataset.manifest.of_split("test") for rotation in entry.rotations
    )
    assert all(one.name == dataset.manifest.classes[one.class_id].name for one in evaluation.by_class)


def test_confusions_are_the_most_frequent_of_those_counted(dataset, protonet, evaluation):
    scores = evaluate_episodes(protonet, stream(dataset), 120)
    counts = {}
    for true, predicted in scores.confused.tolist():
        counts[true, predicted] = counts.get((true, predicted), 0) + 1
    found = {(4 * c.class_id + c.rotation, 4 * c.predicted_id + c.predicted_rotation): c for c in evaluation.confusions}
    assert [c.count for c in evaluation.confusions] == sorted(counts.values(), reverse=True)[:20]
    for (true, predicted), confusion in found.items():
        assert confusion.count == counts[true, predicted]
        met = sum(true in row and predicted in row for row in scores.classes.tolist())
        assert confusion.queries == 3 * met
        assert confusion.predicted_name == dataset.manifest.classes[confusion.predicted_id].name


def test_calibration_is_that_of_numpy_and_of_scikit_learn(dataset):
    """In fp64, from the answers themselves: a loop over bins for the error, another library for the diagram."""
    learner = make_learner(
        LearnerSpec(learner="protonet", backbone_options={"width": 8}), dataset.spec, seed=1, dtype=torch.float64
    )
    result = evaluate(learner, dataset, PROTOCOL)
    learner.eval()
    with torch.no_grad():
        batch = stream(dataset).batch(0, 120)
        p, answer = learner(batch).softmax(dim=-1).max(dim=-1)
    confidence, right = p.flatten().numpy(), (answer == batch.query_y).flatten().numpy()
    expected = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected > 0.01
    assert result.ece == pytest.approx(expected, abs=1e-9)
    accuracies, confidences = calibration_curve(right, confidence, n_bins=15)
    assert [one.accuracy for one in result.reliability] == pytest.approx(accuracies.tolist())
    assert [one.confidence for one in result.reliability] == pytest.approx(confidences.tolist())
    assert sum(one.queries for one in result.reliability) == 120 * 5 * 3


def test_a_bundle_is_not_tested_on_what_it_was_trained_on(workshop, small_dataset, tmp_path):
    tested = split_hashes(small_dataset, "test")
    bundle = workshop.make_bundle(tmp_path / "bundle", small_dataset, images=tested[:1])
    result, scores = evaluate_bundle(bundle, small_dataset, workshop.PROTOCOL)
    first = small_dataset.manifest.of_split("test")[0]
    assert result.leakage.class_names == (first.name,)
    assert first.name not in {one.name for one in result.by_class}
    assert result.accuracy == pytest.approx(scores.accuracy.mean())
    left = without_classes(small_dataset, "test", {first.digest})
    learner, _ = load_bundle(bundle)
    assert result.accuracy == evaluate(learner, left, workshop.PROTOCOL).accuracy
    assert result.dataset_digest == left.digest != small_dataset.digest


def test_classes_keep_their_numbers_where_others_are_left_out(workshop, small_dataset, tmp_path):
    bundle = workshop.make_bundle(tmp_path / "bundle", small_dataset, images=split_hashes(small_dataset, "test")[:1])
    result, _ = evaluate_bundle(bundle, small_dataset, workshop.PROTOCOL)
    names = [entry.name for entry in small_dataset.manifest.classes]
    assert result.leakage.class_names
    assert result.confusions
    assert all(names[one.class_id] == one.name for one in result.by_class)
    assert all(
        (names[one.class_id], names[one.predicted_id]) == (one.name, one.predicted_name) for one in result.confusions
    )


def test_too_few_unseen_classes_are_refused_and_the_duplicates_named(workshop, small_dataset, tmp_path):
    tested = split_hashes(small_dataset, "test")
    bundle = workshop.make_bundle(tmp_path / "bundle", small_dataset, images=tested[: 6 * 8])
    with pytest.raises(UsageError, match=r"leakage: 48 of 64 test examples were trained on, as .*png.* left out; then"):
        evaluate_bundle(bundle, small_dataset, workshop.PROTOCOL)


def test_the_training_split_is_evaluated_for_who_asks(workshop, small_dataset, tmp_path):
    images = split_hashes(small_dataset, "train")
    bundle = workshop.make_bundle(tmp_path / "bundle", small_dataset, images=images)
    protocol = workshop.PROTOCOL.model_copy(update={"split": "train"})
    result, _ = evaluate_bundle(bundle, small_dataset, protocol)
    assert (result.leakage, len(result.by_class)) == (None, 6)


def test_the_same_protocol_gives_the_same_numbers(dataset, protonet, evaluation):
    timing = {"seconds", "adaptation_ms"}
    again = evaluate(protonet, dataset, PROTOCOL)
    assert again.model_dump(exclude=timing) == evaluation.model_dump(exclude=timing)
    other = evaluate(protonet, dataset, PROTOCOL.model_copy(update={"seed": 8}))
    assert other.accuracy != evaluation.accuracy


def test_an_evaluation_travels_as_json(evaluation):
    text = evaluation.model_dump_json()
    assert Evaluation.model_validate_json(text) == evaluation
    assert all(math.isfinite(value) for value in json.loads(text).values() if isinstance(value, float))


def test_gradient_steps_and_their_time_are_reported(dataset, maml, evaluation):
    result = evaluate(maml, dataset, PROTOCOL.model_copy(update={"episodes": 10, "domain_episodes": 0}))
    assert result.adaptation_steps == maml.config.eval_steps > 0
    assert result.adaptation_ms > 0
    assert evaluation.adaptation_steps is None


def test_perfect_answers_are_no_certainty(dataset, protonet):
    alike = dataset.examples[dataset.class_offset].repeat_interleave(dataset.class_count, dim=0)
    easy = EpisodeDataset(dataset.folder, dataset.manifest, alike)
    result = evaluate(protonet, easy, Protocol(way=2, shot=8, query=1, episodes=10, seed=1, domain_episodes=0))
    assert result.accuracy == 1.0
    assert result.ci95 == pytest.approx(1 - 0.025 ** (1 / 10))
    assert result.ci95_classes >= 1 - 0.025 ** (1 / 18)


def test_progress_is_told_to_the_end(dataset, protonet, monkeypatch, tmp_path):
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events"))
    result = evaluate(protonet, dataset, Protocol(query=3, episodes=2000, domain_episodes=700))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert (events[-1]["done"], events[-1]["total"]) == (3400, 3400)
    assert len(events) <= 2 + 4 * result.seconds


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"way": 40}, "way 40: the test split has"),
        ({"shot": 10}, r"shot 10 \+ query 3 need 13"),
        ({"split": "validation", "way": 6}, "the validation split has 5 classes"),
    ],
)
def test_impossible_episodes_are_refused_before_work(dataset, protonet, values, words):
    with pytest.raises(UsageError, match=words):
        evaluate(protonet, dataset, PROTOCOL.model_copy(update=values))


def test_a_learner_of_fixed_way_is_refused_another(dataset, maml):
    with pytest.raises(UsageError, match="way 4: maml was trained for exactly 5 classes"):
        evaluate(maml, dataset, PROTOCOL.model_copy(update={"way": 4}))


def test_a_learner_of_other_examples_is_refused(dataset):
    spec = dataset.spec.model_copy(update={"example_shape": (1, 28, 28)})
    with pytest.raises(UsageError, match=r"\(1, 16, 16\), protonet was trained on .* \(1, 28, 28\)"):
        evaluate(make_learner(LearnerSpec(learner="protonet"), spec), dataset, PROTOCOL)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"way": 0}, "protocol way: got 0"), ({"split": "tset"}, "protocol split"), ({"shots": 1}, "did you mean 'shot'")],
)
def test_a_protocol_from_a_command_line_is_checked(values, words):
    with pytest.raises(UsageError, match=words):
        make_protocol(**values)
