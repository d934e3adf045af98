from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metalearn_core.errors import UsageError
from metalearn_core.evaluation.statistics import (
    calibration_error,
    class_interval,
    holm,
    look_alpha,
    new_class_interval,
    paired,
    t_interval,
    welch,
)


def test_t_interval_is_scipys():
    values = np.random.default_rng(0).beta(8, 2, 50)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = t_interval(values, alpha=0.1)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_t_interval_covers_the_mean_as_often_as_it_says():
    values = np.random.default_rng(1).binomial(75, 0.9, size=(2000, 100)) / 75
    intervals = [t_interval(row) for row in values]
    covered = np.mean([interval.low <= 0.9 <= interval.high for interval in intervals])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("value", "count"), [(1.0, 1), (1.0, 600), (0.0, 40), (0.8, 7)])
def test_equal_values_never_give_a_zero_interval(value, count):
    interval = t_interval(np.full(count, value))
    worst_share = 1 - stats.binomtest(count, count).proportion_ci(0.95, method="exact").low
    assert interval.half_width == pytest.approx(worst_share * max(value, 1 - value), rel=1e-9)
    assert interval.half_width > 0
    assert "exact" in interval.method


def test_no_values_are_refused():
    with pytest.raises(UsageError, match="at least one episode"):
        t_interval([])


def test_paired_is_scipys_paired_t_test():
    random = np.random.default_rng(2)
    a, b = random.beta(8, 2, 80), random.beta(7, 2, 80)
    expected = stats.ttest_rel(a, b)
    result = paired(a, b, alpha=0.02)
    interval = expected.confidence_interval(0.98)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 60), st.integers(0, 10_000), st.floats(0.001, 0.2))
def test_paired_interval_leaves_out_zero_exactly_when_p_is_below_alpha(count, seed, alpha):
    random = np.random.default_rng(seed)
    result = paired(random.integers(0, 20, count) / 19, random.integers(0, 20, count) / 19, alpha=alpha)
    assert (result.low > 0 or result.high < 0) == (result.p_value < alpha)


def test_a_model_against_itself_is_no_difference_but_not_a_proof_of_none():
    result = paired(np.linspace(0, 1, 200), np.linspace(0, 1, 200))
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.low < 0 < result.high


def test_equal_differences_are_tested_by_the_exact_bound():
    few, many = (paired(np.full(n, 1.0), np.full(n, 0.8)) for n in (5, 500))
    assert few.p_value > 0.05
    assert few.low < 0
    assert many.p_value < 1e-6
    assert many.low > 0


def test_paired_refuses_different_episodes():
    with pytest.raises(UsageError, match="same episodes, got 3 and 4"):
        paired([1, 1, 1], [1, 1, 1, 1])


def simulated(random, classes, way, episodes, query=15, domains=None, domain_spread=0.0):
    """Episodes whose classes differ in how well they are known, and in how much they disturb the others."""
    own, disturbs = random.normal(0, 0.8, classes), random.normal(0, 0.3, classes)
    if domains is not None:
        own = own + random.normal(0, domain_spread, domains.max() + 1)[domains]
    drawn = np.argsort(random.random((episodes, classes)), axis=1)[:, :way]
    others = disturbs[drawn].sum(axis=1, keepdims=True) - disturbs[drawn]
    correct = random.binomial(query, 1 / (1 + np.exp(-(1.5 + own[drawn] - others))))
    return correct.mean(axis=1) / query, drawn, correct


def population_mean(way, domain_spread=0.0):
    random = np.random.default_rng(99)
    own = random.normal(0, np.hypot(0.8, domain_spread), 400_000)
    return float(np.mean(1 / (1 + np.exp(-(1.5 + own - random.normal(0, 0.3, (400_000, way - 1)).sum(axis=1))))))


@pytest.mark.parametrize(("classes", "way"), [(40, 5), (10, 5), (50, 20)])
def test_class_interval_covers_the_accuracy_on_new_classes(classes, way):
    random, truth, covered, by_episodes = np.random.default_rng(3), population_mean(way), 0, 0
    for _ in range(300):
        accuracy, drawn, correct = simulated(random, classes, way, 300)
        interval = class_interval(accuracy, drawn, correct, np.arange(classes), query=15)
        covered += interval.low <= truth <= interval.high
        narrow = t_interval(accuracy)
        by_episodes += narrow.low <= truth <= narrow.high
    assert covered / 300 > 0.92
    assert by_episodes / 300 < 0.5, "the interval over episodes does not speak about new classes"


def test_interval_over_domains_covers_the_accuracy_on_new_domains():
    random, truth, covered = np.random.default_rng(4), population_mean(5, 0.7), 0
    domains = np.repeat(np.arange(8), 6)
    for _ in range(300):
        accuracy, drawn, correct = simulated(random, 48, 5, 300, domains=domains, domain_spread=0.7)
        interval = new_class_interval(accuracy, drawn, correct, np.arange(48), domains, query=15)
        covered += interval.low <= truth <= interval.high
    assert covered / 300 > 0.92


def test_rotations_of_a_class_are_left_out_together():
    accuracy, drawn, correct = simulated(np.random.default_rng(5), 40, 5, 400)
    alone = class_interval(accuracy, drawn, correct, np.arange(40), query=15)
    # The same pairs, four to a class whose rotations agree: there are only ten classes to learn from.
    order = np.argsort([correct[drawn == pair].mean() for pair in range(40)])
    class_id = np.empty(40, dtype=int)
    class_id[order] = np.repeat(np.arange(10), 4)
    together = class_interval(accuracy, drawn, correct, class_id, query=15)
    assert together.half_width > 1.3 * alone.half_width


def test_class_interval_exists_when_every_class_is_in_every_episode():
    random = np.random.default_rng(6)
    drawn = np.argsort(random.random((100, 5)), axis=1)
    correct = random.binomial(15, np.array([0.5, 0.6, 0.7, 0.8, 0.9])[drawn])
    interval = class_interval(correct.mean(axis=1) / 15, drawn, correct, np.arange(5), query=15)
    assert 0.1 < interval.half_width < 0.4
    described = new_class_interval(
        correct.mean(axis=1) / 15, drawn, correct, np.arange(5), np.zeros(5, dtype=int), query=15
    )
    assert described.method == "95 % t interval over 5 test classes, each of them in every episode"


def test_perfect_answers_bound_the_share_of_classes_that_were_not_seen():
    drawn = np.argsort(np.random.default_rng(7).random((500, 30)), axis=1)[:, :5]
    interval = new_class_interval(
        np.ones(500), drawn, np.full((500, 5), 15), np.arange(30), np.zeros(30, dtype=int), query=15
    )
    assert interval.half_width == pytest.approx(1 - 0.025 ** (1 / 30))


def test_looks_together_never_spend_more_than_alpha():
    assert look_alpha(0.05, 1) == 0.025
    assert sum(look_alpha(0.05, look) for look in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(UsageError, match="look"):
        look_alpha(0.05, 0)


def test_calibration_error_is_the_weighted_gap_of_each_bin():
    confidence, right = np.array([0.95, 0.9, 0.6, 0.55]), np.array([1, 0, 1, 1])
    bins = np.array([1, 1, 0, 0])
    sums = [np.bincount(bins, weights) for weights in (None, confidence, right)]
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in (0, 1)]
    assert calibration_error(*sums) == pytest.approx(sum(gaps))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls at the least level at which every intersection with it falls: tried one by one."""
    m = len(p_values)
    sets = [set(chosen) for size in range(1, m + 1) for chosen in combinations(range(m), size)]
    expected = [max(min(1, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in range(m)]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_of_nothing_is_nothing():
    assert holm([]).tolist() == []


def test_welch_is_scipys():
    a, b = np.array([0.91, 0.94, 0.90, 0.93]), np.array([0.88, 0.80, 0.86])
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.9)
    result = welch(a, b, alpha=0.1)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.p_value == pytest.approx(expected.pvalue)


def test_welch_covers_the_difference_as_often_as_it_says():
    random = np.random.default_rng(3)
    a, b = random.normal(0.9, 0.02, (2000, 3)), random.normal(0.8, 0.04, (2000, 3))
    covered = [(r := welch(x, y)).low <= 0.1 <= r.high for x, y in zip(a, b, strict=True)]
    assert 0.93 < np.mean(covered) < 0.98


def test_seeds_that_all_gave_the_same_say_nothing_of_others():
    assert welch([0.9, 0.9, 0.9], [0.8, 0.8, 0.8]) is None
    assert welch([0.9, 0.9, 0.9], [0.8, 0.81, 0.8]) is not None


def test_a_single_seed_is_no_sample_of_seeds():
    with pytest.raises(UsageError, match="two of each"):
        welch([0.9], [0.8, 0.7])
