import numpy as np
import pytest
from scipy import stats

from metalearn_core.errors import UsageError
from metalearn_core.evaluation.ranking import against, over_seeds, speaks_of

RANDOM = np.random.default_rng(0)
HARDNESS = RANDOM.normal(0, 0.1, 200)


def accuracies(mean: float, seeds: int, spread: float = 0.02) -> np.ndarray:
    """(seeds, 200) accuracies of models that find the same episodes hard."""
    return np.clip(mean + HARDNESS + RANDOM.normal(0, spread, (seeds, 1)) + RANDOM.normal(0, 0.03, (seeds, 200)), 0, 1)


def test_one_seed_is_scipys_paired_test_at_bonferronis_level_and_holms_p():
    values = {"best": accuracies(0.8, 1), "near": accuracies(0.79, 1), "far": accuracies(0.6, 1)}
    found, method = against("best", values)
    assert found["best"] is None
    tests = {name: stats.ttest_rel(values[name][0], values["best"][0]) for name in ("near", "far")}
    for name, test in tests.items():
        interval = test.confidence_interval(0.975)
        assert (found[name].low, found[name].high) == pytest.approx((interval.low, interval.high))
        assert found[name].p_value == pytest.approx(test.pvalue)
    smaller, larger = sorted(tests, key=lambda name: tests[name].pvalue)
    assert found[smaller].p_holm == pytest.approx(min(1, 2 * tests[smaller].pvalue))
    assert found[larger].p_holm == pytest.approx(max(found[smaller].p_holm, tests[larger].pvalue))
    assert "200 test episodes, paired" in method
    assert "2 comparisons" in method


def test_several_seeds_are_scipys_welch_test_of_the_models_means():
    values = {"best": accuracies(0.8, 3), "other": accuracies(0.7, 3)}
    found, method = against("best", values)
    test = stats.ttest_ind(values["other"].mean(axis=1), values["best"].mean(axis=1), equal_var=False)
    interval = test.confidence_interval(0.95)
    assert (found["other"].low, found["other"].high) == pytest.approx((interval.low, interval.high))
    assert found["other"].p_holm == pytest.approx(test.pvalue)
    assert "3 training seeds each" in method


def test_intervals_widen_with_comparisons_of_the_same_table_that_are_made_elsewhere():
    values = {"best": accuracies(0.8, 1), "other": accuracies(0.7, 1)}
    found, method = against("best", values, comparisons=16)
    interval = stats.ttest_rel(values["other"][0], values["best"][0]).confidence_interval(1 - 0.05 / 16)
    assert (found["other"].low, found["other"].high) == pytest.approx((interval.low, interval.high))
    assert "16 comparisons" in method


def test_all_intervals_hold_at_once_as_often_as_they_say():
    """Four learners, none better than another: how often is any of them called different?"""
    random, wrong = np.random.default_rng(1), 0
    for _ in range(400):
        hardness = random.normal(0.7, 0.1, 40)
        values = {str(i): hardness + random.normal(0, 0.05, 40) for i in range(4)}
        found, _ = against("0", values)
        called = [one for one in found.values() if one and one.p_holm <= 0.05]
        outside = [one for one in found.values() if one and not one.low <= 0 <= one.high]
        wrong += bool(called)
        assert bool(called) >= bool(outside), "what an interval leaves out, Holm's test rejects as well"
    assert 0.015 < wrong / 400 < 0.075


def test_seeds_that_do_not_spread_give_no_interval():
    same = np.tile(accuracies(0.8, 1), (3, 1))
    assert over_seeds(same) == (pytest.approx(same.mean()), None)
    other = np.tile(accuracies(0.6, 1), (3, 1))
    found, _ = against("a", {"a": same, "b": other, "c": accuracies(0.7, 3)})
    assert found["b"] is None
    assert found["c"].p_holm == found["c"].p_value, "what could not be tested is no test to correct for"


def test_a_mean_over_seeds_has_the_t_interval_of_the_seeds():
    values = accuracies(0.8, 3)
    mean, half_width = over_seeds(values)
    assert mean == pytest.approx(values.mean())
    assert half_width == pytest.approx(stats.t.ppf(0.975, 2) * values.mean(axis=1).std(ddof=1) / np.sqrt(3))
    one, own = over_seeds(values[:1])
    assert (one, own) == pytest.approx(
        (values[0].mean(), stats.t.ppf(0.975, 199) * values[0].std(ddof=1) / np.sqrt(200))
    )


def test_learners_with_other_seeds_or_episodes_are_not_compared():
    with pytest.raises(UsageError, match="1 × 200, 3 × 200"):
        against("a", {"a": accuracies(0.8, 3), "b": accuracies(0.7, 1)})


def test_a_learner_alone_is_compared_with_nothing():
    found, _ = against("a", {"a": accuracies(0.8, 1)})
    assert found == {"a": None}


def test_what_figures_speak_of_depends_on_the_number_of_seeds():
    assert "one model" in speaks_of(1)
    assert "too few" in speaks_of(2)
    assert speaks_of(3).startswith("learners")
