"""Intervals and tests for accuracies over episodes, and what each of them does and does not speak about."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from metalearn_core.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FEWEST_DOMAINS = 3
"""With fewer domains than this, how much domains differ cannot be estimated, and classes alone are resampled."""


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its interval; `method` says in words how it was made and what it speaks about."""

    mean: float
    half_width: float
    method: str

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half_width


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences, its interval at 1 − alpha, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float
    method: str


def t_interval(
    values: ArrayLike, *, alpha: float = 0.05, bounds: tuple[float, float] = (0.0, 1.0), of: str = "episode"
) -> Interval:
    """Return Student's t interval of the mean of independent `values` (n,), with n − 1 degrees of freedom (ddof 1).

    When all values are the same (100 % of n episodes) the t interval would be zero, which n values cannot justify.
    Then the interval is exact: if a share p of all episodes differed from what was seen, none would show among n with
    probability (1 − p)^n; so p ≤ 1 − (alpha/2)^(1/n) (Clopper and Pearson 1934; for n large about 3.7/n), and the
    mean moves by at most p times the distance to the farther bound. It holds for n = 1 as well.

    Args:
        values: (n,) numbers within `bounds`.
        alpha: one minus the confidence.
        bounds: the least and the greatest value possible.
        of: what one value belongs to, for the words of the method.

    Raises:
        UsageError: there are no values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    count = numbers.size
    if count == 0:
        raise UsageError(f"an interval needs at least one {of}, got none")
    mean = float(numbers.mean())
    level = f"{100 * (1 - alpha):.4g} %"
    if count == 1 or np.ptp(numbers) == 0:
        return Interval(
            float(numbers[0]),
            _unseen_share(count, alpha) * max(bounds[1] - numbers[0], numbers[0] - bounds[0]),
            f"exact {level} bound: all {count} {of} values are equal (Clopper-Pearson)",
        )
    half_width = stats.t.isf(alpha / 2, count - 1) * numbers.std(ddof=1) / np.sqrt(count)
    return Interval(mean, float(half_width), f"{level} t interval over {count} {of} means")


def paired(a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05) -> PairedDifference:
    """Compare two models by their accuracies on the same episodes: a t interval of a − b, and its t test.

    When all differences are equal, interval and p-value come from the exact bound of `t_interval` and its inversion:
    p = 2 / (1 + |d|)^n, at most 1.

    Args:
        a, b: (n,) accuracies in [0, 1], of the same episodes in the same order.
        alpha: the interval has confidence 1 − alpha.

    Raises:
        UsageError: a and b differ in length, or are empty.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise UsageError(f"a paired comparison needs the same episodes, got {first.size} and {second.size}")
    differences = first - second
    if differences.size and np.ptp(differences) < 1e-12:  # equal but for rounding: differences of fractions of queries
        differences = np.full_like(differences, differences[0])
    interval = t_interval(differences, alpha=alpha, bounds=(-1.0, 1.0))
    count, mean, spread = differences.size, interval.mean, differences.std(ddof=1) if differences.size > 1 else 0.0
    if np.ptp(differences) == 0:  # not the spread, which rounding keeps above zero
        p_value = min(1.0, 2.0 * (1.0 + abs(mean)) ** -count)
    else:
        p_value = float(2 * stats.t.sf(abs(mean) * np.sqrt(count) / spread, count - 1))
    return PairedDifference(mean, interval.low, interval.high, p_value, f"paired: {interval.method}")


def welch(a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05) -> PairedDifference | None:
    """Compare two learners by the accuracies of models from several training seeds: Welch's t interval and test (1947).

    Nothing pairs the seeds of one learner with those of another, and their spreads differ. With squared errors of the
    means e = s²/n the degrees of freedom are (e_a + e_b)² / (e_a²/(n − 1) + e_b²/(m − 1)). None where neither spreads
    (all seeds gave the same): then nothing can be said of other seeds.

    Args:
        a: (n,) accuracies of one learner's models on the same episodes, n ≥ 2.
        b: (m,) likewise of the other, m ≥ 2.
        alpha: the interval has confidence 1 − alpha.

    Raises:
        UsageError: there are fewer than two models of one.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(first.size, second.size) < 2:
        raise UsageError(f"a comparison over seeds needs two of each learner, got {first.size} and {second.size}")
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return None
    errors = np.array([0.0 if np.ptp(one) == 0 else one.var(ddof=1) / one.size for one in (first, second)])
    freedom = errors.sum() ** 2 / (errors**2 / [first.size - 1, second.size - 1]).sum()
    difference, error = float(first.mean() - second.mean()), float(np.sqrt(errors.sum()))
    reach = float(stats.t.isf(alpha / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(difference) / error, freedom))
    level = f"{100 * (1 - alpha):.4g} %"
    method = f"{level} Welch t interval over {first.size} and {second.size} training seeds"
    return PairedDifference(difference, difference - reach, difference + reach, p_value, method)


def holm(p_values: ArrayLike) -> Floats:
    """Return the p-values (m,) adjusted for m tests (Holm 1979): each may be held against alpha itself.

    Sorted ascending, p₍ₖ₎ becomes max over j ≤ k of min(1, (m − j + 1) p₍ⱼ₎). The chance of any false rejection is at
    most alpha, however the tests depend on one another.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = values.argsort(kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def class_interval(
    accuracy: ArrayLike,
    classes: ArrayLike,
    correct: ArrayLike,
    group: ArrayLike,
    *,
    query: ArrayLike,
    alpha: float = 0.05,
) -> Interval:
    """Return the interval of mean accuracy that a user may expect on new classes, like those tested but others.

    The interval over episodes narrows as episodes are drawn, though the test classes stay as few as they are. This one
    asks how the mean changes with the classes: the jackknife. Class c is left out together with every episode that it
    takes part in, as the right answer or as a wrong one, and the mean of the others is θ₋c. With m classes and
    u_c = (m − 1)(θ − θ₋c), the variance is Σ_c u_c² / (m(m − 1)) (Arvesen 1969, for U-statistics, which a mean over
    episodes is); where classes belong to G groups it is G/(G − 1) · Σ_g (Σ_{c∈g} u_c)² / m². Student's t with G − 1
    degrees of freedom. It is conservative: the jackknife over-states a variance (Efron and Stein 1981), the noise of a
    finite number of episodes is left in it, and where the interval on the logit scale (on which accuracies near 1 are
    less skewed) reaches farther to one side, that is the half-width. Nothing is drawn at random.

    Where every class is in every episode nothing can be left out; then it is the t interval over the accuracies of the
    groups' own queries, which is also the least it can be, as is the interval over episodes. (That one alone is
    not conservative: it does not see that a class makes others harder.)

    Args:
        accuracy: (n,) of each episode.
        classes: (n, way) which class stands in each column, any non-negative integers; −1 where an episode has fewer.
        correct: (n, way) right answers among the `query` queries of that class.
        group: (classes,) the group that each class number belongs to: itself, or its domain.
        query: queries per class: one number, or (n, way).
        alpha: one minus the confidence.
    """
    episodes = np.asarray(accuracy, dtype=np.float64)
    present = np.asarray(classes) >= 0
    names, columns = np.unique(np.asarray(classes)[present], return_inverse=True)
    _, member = np.unique(np.asarray(group)[names], return_inverse=True)
    groups, count = int(member.max()) + 1, names.size
    seen = np.bincount(columns, minlength=count)
    answers, asked = (
        np.bincount(columns, np.broadcast_to(np.asarray(values, dtype=np.float64), present.shape)[present], count)
        for values in (correct, query)
    )
    own = np.bincount(member, answers) / np.bincount(member, asked)
    half_width = t_interval(episodes, alpha=alpha).half_width
    method = f"t interval over the accuracies of {groups} groups"
    if groups > 1 and np.ptp(own) > 0:
        half_width = max(half_width, t_interval(own, alpha=alpha).half_width)
    mean, left_out = float(episodes.mean()), episodes.size - seen
    # A group whose classes are together in all episodes leaves nothing over; neither does a single group.
    if groups > 1 and left_out.min() > 0 and 0 < mean < 1:
        total = np.bincount(columns, np.broadcast_to(episodes[:, np.newaxis], present.shape)[present], count)
        influence = (count - 1) * (mean - (episodes.sum() - total) / left_out)
        influence -= influence.mean()
        variance = groups / (groups - 1) * np.square(np.bincount(member, influence)).sum() / count**2
        half_width = max(half_width, _reach(mean, float(stats.t.isf(alpha / 2, groups - 1) * np.sqrt(variance))))
        method = f"jackknife over {groups} groups"
    return Interval(mean, min(half_width, 1.0), method)


def new_class_interval(
    accuracy: ArrayLike,
    classes: ArrayLike,
    correct: ArrayLike,
    class_id: ArrayLike,
    domain: ArrayLike,
    *,
    query: ArrayLike,
    alpha: float = 0.05,
) -> Interval:
    """Return the wider of two `class_interval`s: leaving out classes, and leaving out domains where there are several.

    When every answer is right (or every one wrong) it is the exact bound of `t_interval` over the classes: never zero.

    Args:
        accuracy, classes, correct, query, alpha: see `class_interval`; `classes` numbers (class, rotation) pairs.
        class_id: (pairs,) the class that each pair belongs to, so that rotations of a class leave together.
        domain: (pairs,) the domain that each pair belongs to.
    """
    there = np.asarray(classes) >= 0
    present = np.unique(np.asarray(classes)[there])
    n_classes, n_domains = (np.unique(np.asarray(names)[present]).size for names in (class_id, domain))
    level = f"{100 * (1 - alpha):.4g} %"
    if np.ptp(np.asarray(correct)[there] / np.broadcast_to(np.asarray(query), there.shape)[there]) == 0:
        bound = t_interval(np.full(n_classes, np.mean(np.asarray(accuracy))), alpha=alpha, of="class")
        return Interval(bound.mean, bound.half_width, bound.method)
    interval = class_interval(accuracy, classes, correct, class_id, query=query, alpha=alpha)
    kind = interval.method.partition(" over ")[0]
    method = f"{level} {kind} over {n_classes} test classes"
    if kind != "jackknife":
        method += ", each of them in every episode"
    if n_domains >= FEWEST_DOMAINS:
        by_domain = class_interval(accuracy, classes, correct, domain, query=query, alpha=alpha)
        method += f" and over their {n_domains} domains, the wider of the two"
        interval = max(interval, by_domain, key=lambda one: one.half_width)
    elif n_domains > 1:
        method += f" ({n_domains} domains are too few to tell how domains differ)"
    return Interval(interval.mean, interval.half_width, method)


def look_alpha(alpha: float, look: int) -> float:
    """Return the level α/(k(k+1)) of the k-th look at the same test classes, k from 1; over all looks they sum to α.

    Raises:
        UsageError: look is below 1.
    """
    if look < 1:
        raise UsageError(f"look must be at least 1, got {look}")
    return alpha / (look * (look + 1))


def calibration_error(count: Floats, confidence: Floats, correct: Floats) -> float:
    """Return the expected calibration error (Guo 2017, equation 3) from the sums over each confidence bin.

    Args:
        count: (bins,) queries whose confidence falls in the bin.
        confidence: (bins,) sum of their confidences (the greatest probability).
        correct: (bins,) how many of them were right.
    """
    return float(np.abs(confidence - correct).sum() / max(count.sum(), 1.0))


def _unseen_share(count: int, alpha: float) -> float:
    """Return the largest share of a population that `count` draws miss altogether with probability alpha/2."""
    return float(-np.expm1(np.log(alpha / 2) / count))


def _reach(mean: float, half_width: float) -> float:
    """Return the farthest that an interval of a mean in (0, 1) reaches, on its own scale or on that of logits."""
    scale = half_width / (mean * (1 - mean))
    ends = special.expit(special.logit(mean) + np.array([-scale, scale]))
    return max(half_width, float(np.abs(ends - mean).max()))
