import numpy as np
import pytest
import torch
from scipy import stats

from metalearn_core.bundle import save_bundle
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.subset import split_hashes, without_classes
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.compare import compare, compare_bundles
from metalearn_core.evaluation.evaluate import Protocol, domain_samplers, evaluate_scored
from metalearn_core.evaluation.scoring import evaluate_episodes
from metalearn_core.learners import LearnerSpec, make_learner

PROTOCOL = Protocol(way=5, shot=1, query=3, episodes=100, seed=7)
SPEC = LearnerSpec(learner="protonet", backbone_options={"width": 16})


@pytest.fixture
def other(dataset):
    return make_learner(SPEC, dataset.spec, seed=2)


@pytest.fixture
def ignorant(dataset):
    """A learner for which all examples are the same."""
    learner = make_learner(SPEC, dataset.spec, seed=1)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.zero_()
    return learner


def test_comparison_is_scipys_paired_test_on_the_same_episodes(dataset, protonet, other):
    sampler = EpisodeSampler(dataset, "test", PROTOCOL.shape, seed=7)
    a, b = (evaluate_episodes(learner, sampler, 100).accuracy for learner in (protonet, other))
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.9)
    result = compare(protonet, other, dataset, PROTOCOL, alpha=0.1)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert (result.accuracy_a, result.accuracy_b) == pytest.approx((a.mean(), b.mean()))
    assert result.difference == pytest.approx((a - b).mean())
    assert result.episodes == 100
    assert result.ece_a == evaluate_scored(protonet, dataset, PROTOCOL)[0].ece


def test_exchanging_the_models_turns_the_sign(dataset, protonet, other):
    one, two = compare(protonet, other, dataset, PROTOCOL), compare(other, protonet, dataset, PROTOCOL)
    assert (one.difference, one.low, one.high) == pytest.approx((-two.difference, -two.high, -two.low))
    assert one.p_value == pytest.approx(two.p_value)
    assert one.by_domain["wide"].difference == pytest.approx(-two.by_domain["wide"].difference)


def test_scores_that_are_known_lead_to_the_same_comparison(dataset, protonet, other):
    _, scores = evaluate_scored(protonet, dataset, PROTOCOL.model_copy(update={"domain_episodes": 0}))
    known = compare(protonet, other, dataset, PROTOCOL, scores_a=scores)
    assert known == compare(protonet, other, dataset, PROTOCOL)
    with pytest.raises(UsageError, match="other episodes"):
        compare(protonet, other, dataset, PROTOCOL.model_copy(update={"seed": 8}), scores_a=scores)


def test_a_model_against_itself_shows_no_difference_and_says_what_that_means(dataset, protonet):
    result = compare(protonet, protonet, dataset, PROTOCOL)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.low < 0 < result.high
    assert "No difference" in result.conclusion
    assert "neither shown nor ruled out" in result.conclusion


def test_the_better_model_is_named_whichever_comes_first(dataset, protonet, ignorant):
    for a, b, names in ((protonet, ignorant, ("good", "bad")), (ignorant, protonet, ("bad", "good"))):
        result = compare(a, b, dataset, PROTOCOL, names=names)
        assert result.p_value < 1e-6
        assert result.conclusion.startswith("good is better than bad on the same 100 test episodes")
        assert "not of learners in general" in result.conclusion
        assert result.by_domain["tiny"] is None
        assert "2 classes" in result.by_domain_reason["tiny"]


def test_domains_are_corrected_for_how_many_they_are(dataset, protonet, other):
    result = compare(protonet, other, dataset, PROTOCOL, alpha=0.1)
    samplers, _ = domain_samplers(protonet, dataset, PROTOCOL)
    assert set(samplers) == {"wide", "broad"}
    expected = {}
    for name, sampler in samplers.items():
        episodes = PROTOCOL.episodes_by_domain(len(samplers))
        a, b = (evaluate_episodes(learner, sampler, episodes).accuracy for learner in (protonet, other))
        expected[name] = stats.ttest_rel(a, b)
        found = result.by_domain[name]
        assert (found.low, found.high) == pytest.approx(tuple(expected[name].confidence_interval(1 - 0.1 / 2)))
        assert found.p_value == pytest.approx(expected[name].pvalue)
    least, most = sorted(expected, key=lambda name: expected[name].pvalue)
    assert result.by_domain[least].p_holm == pytest.approx(min(1, 2 * expected[least].pvalue))
    assert result.by_domain[most].p_holm == pytest.approx(max(result.by_domain[least].p_holm, expected[most].pvalue))


def test_learners_of_different_kinds_meet_on_the_same_episodes(dataset, protonet, maml):
    result = compare(protonet, maml, dataset, PROTOCOL.model_copy(update={"episodes": 20}))
    sampler = EpisodeSampler(dataset, "test", PROTOCOL.shape, seed=7)
    assert result.accuracy_b == pytest.approx(evaluate_episodes(maml, sampler, 20).accuracy.mean())


def test_classes_that_a_model_has_seen_are_left_out(dataset, protonet, other):
    seen = {entry.digest for entry in dataset.manifest.of_split("test")[:6]}
    result = compare(protonet, other, dataset, PROTOCOL, exclude_classes=seen | {"of another dataset"})
    assert (result.classes, result.excluded_classes) == (12, 6)
    assert result.dataset_digest != dataset.digest


def test_too_few_unseen_classes_are_refused_with_the_reason(dataset, protonet, other):
    seen = {entry.digest for entry in dataset.manifest.of_split("test")[:15]}
    with pytest.raises(UsageError, match=r"15 test classes are left out, since a model was trained on .*; then way"):
        compare(protonet, other, dataset, PROTOCOL, exclude_classes=seen)


def test_a_dataset_without_classes_keeps_the_pixels_of_the_others(dataset):
    gone = [dataset.manifest.of_split("test")[i] for i in (0, 4)]
    left = without_classes(dataset, "test", {entry.digest for entry in gone})
    assert [entry.id for entry in left.manifest.classes] == list(range(len(dataset.manifest.classes) - 2))
    for entry in left.manifest.classes:
        before = next(one for one in dataset.manifest.classes if one.digest == entry.digest)
        rows = [int(one.class_offset[e.id]) for one, e in ((left, entry), (dataset, before))]
        assert rows[0] == rows[1]
        assert int(left.class_count[entry.id]) == entry.count
    index = EpisodeSampler(left, "test", PROTOCOL.shape, seed=0).index(0, 300)
    drawn = torch.cat([index.support_index.flatten(), index.query_index.flatten()])
    for entry in gone:
        first = int(dataset.class_offset[entry.id])
        assert not ((drawn >= first) & (drawn < first + entry.count)).any()
    assert without_classes(dataset, "test", {"unknown"}) is dataset
    assert len(np.unique([dataset.digest, left.digest])) == 2


def test_bundles_bring_the_classes_that_they_have_seen(dataset, protonet, other, tmp_path):
    test = dataset.manifest.of_split("test")
    for name, learner, seen in (("a", protonet, test[:2]), ("b", other, test[1:3])):
        lineage = {"dataset_digest": "d", "training_class_digests": [entry.digest for entry in seen]}
        save_bundle(tmp_path / name, learner, SPEC, episode=PROTOCOL.shape, lineage=lineage)
    result = compare_bundles(tmp_path / "a", tmp_path / "b", dataset, PROTOCOL)
    assert result.excluded_classes == 3
    expected = compare(protonet, other, dataset, PROTOCOL, exclude_classes={entry.digest for entry in test[:3]})
    assert result.leakage.class_digests == tuple(entry.digest for entry in test[:3])
    assert result.model_dump(exclude={"leakage"}) == expected.model_dump(exclude={"leakage"})


def test_bundles_bring_the_images_that_they_have_seen(workshop, small_dataset, tmp_path):
    tested = split_hashes(small_dataset, "test")
    first = small_dataset.manifest.of_split("test")[0]
    for name, images in (("a", tested[:2]), ("b", tested[first.count - 1 : first.count + 1])):
        workshop.make_bundle(tmp_path / name, small_dataset, images=images)
    result = compare_bundles(tmp_path / "a", tmp_path / "b", small_dataset, workshop.PROTOCOL)
    assert (result.classes, result.excluded_classes) == (6, 2)
    assert result.leakage.duplicates == 4


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_a_level_that_is_none_is_refused(dataset, protonet, alpha):
    with pytest.raises(UsageError, match="alpha"):
        compare(protonet, protonet, dataset, PROTOCOL, alpha=alpha)
