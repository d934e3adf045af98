"""Several learners on the same test episodes: each against the selected one, corrected for how many they are.

The selected one is chosen on validation episodes, before any of these figures is looked at: so none of them is better
than it should be because it was picked for being so.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from metalearn_core.data.manifest import Record
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.statistics import Floats, PairedDifference, holm, paired, t_interval, welch

FEWEST_SEEDS = 3
"""With fewer training seeds than this, a figure is about models, not about the learners that made them."""


class Difference(Record):
    """A learner's test accuracy minus that of the selected one. All are fractions.

    Attributes:
        difference: of the means.
        low, high: simultaneous interval: with confidence 1 − alpha all intervals of the ranking hold at once.
        p_value: of no difference, two-sided, of this test alone.
        p_holm: the same, corrected for the number of tests.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


class SeedResult(Record):
    """The model of one training seed: test accuracy with its interval over episodes, and validation accuracy."""

    seed: int
    accuracy: float
    ci95: float
    validation_accuracy: float


class RankedLearner(Record):
    """One learner's line. Accuracies and half-widths are fractions; what is counted is a mean over training seeds.

    Attributes:
        name: with the options that were set.
        accuracy: on test episodes, mean over seeds.
        ci95: half-width: with one seed over test episodes (this model), with several over seeds (the learner); None
            where all seeds gave the same.
        ci95_classes: half-width for new classes, mean over seeds of what each model's is.
        ece: expected calibration error on test episodes.
        validation_accuracy: by which learners are selected.
        seeds: a result for each training seed.
        train_seconds, train_episodes: what a training cost.
        adaptation_ms: to adapt to one support set.
        parameters: numbers that are learned.
        peak_memory_bytes, peak_gpu_memory_bytes: of the process that trained (the first, where several shared the
            work), the largest over seeds; 0: no GPU.
        against_selected: None for the selected one, and where seeds do not spread, so that nothing can be said.
    """

    name: str
    accuracy: float
    ci95: float | None
    ci95_classes: float
    ece: float
    validation_accuracy: float
    seeds: tuple[SeedResult, ...] = Field(min_length=1)
    train_seconds: float
    train_episodes: float
    adaptation_ms: float
    parameters: int
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int
    against_selected: Difference | None = None


class Ranking(Record):
    """The learners of a run, in the order in which they were asked for.

    Attributes:
        selected: the name of the one that was selected on validation episodes.
        unit: what the intervals and tests are over: `episodes` of one model each, or training `seeds`.
        alpha: the level of all tests together.
        method: how differences were tested.
        speaks_of: what the figures are about, and what not.
        learners: a line each.
    """

    selected: str
    unit: Literal["episodes", "seeds"]
    alpha: float
    method: str
    speaks_of: str
    learners: tuple[RankedLearner, ...]


def over_seeds(accuracies: ArrayLike) -> tuple[float, float | None]:
    """Return mean and 95 % half-width of a learner's accuracy from those of its models.

    No half-width where several seeds gave the very same: a learner that does not depend on the seed, perhaps.

    Args:
        accuracies: (seeds, episodes); with one seed the interval is over its episodes, with several over their means.
    """
    values = np.atleast_2d(np.asarray(accuracies, dtype=np.float64))
    means = values.mean(axis=1)
    if len(means) > 1 and np.ptp(means) == 0:
        return float(means[0]), None
    interval = t_interval(values[0]) if len(means) == 1 else t_interval(means, of="seed")
    return interval.mean, interval.half_width


def against(
    selected: str, accuracies: Mapping[str, ArrayLike], *, alpha: float = 0.05, comparisons: int | None = None
) -> tuple[dict[str, Difference | None], str]:
    """Compare each learner with the selected one, on the same test episodes.

    With one seed each: the paired t interval over episodes. With several: Welch's over the models' means. Of m
    comparisons each interval has confidence 1 − alpha/m (Bonferroni), so that all hold at once; p-values are Holm's.

    Args:
        selected: the name of the learner to compare with.
        accuracies: (seeds, episodes) by name; the same number of seeds for each.
        alpha: the level of all comparisons together.
        comparisons: m, where others than these belong to the same table; by default all that are made here. Holm's
            p-values are those of the ones made here.

    Returns:
        a difference by name (None for the selected one, and where no model of the two differs), and the method.

    Raises:
        UsageError: the learners were not measured alike.
    """
    values = {name: np.atleast_2d(np.asarray(one, dtype=np.float64)) for name, one in accuracies.items()}
    if len(shapes := {one.shape for one in values.values()}) > 1:
        shown = ", ".join(f"{seeds} × {episodes}" for seeds, episodes in sorted(shapes))
        raise UsageError(f"learners are compared on the same seeds × episodes, got {shown}")
    rivals = [name for name in values if name != selected]
    together = comparisons or len(rivals)
    level = alpha / max(together, 1)
    results = {name: _difference(values[name], values[selected], level) for name in rivals}
    known = {name: result for name, result in results.items() if result is not None}
    adjusted = dict(zip(known, holm([result.p_value for result in known.values()]).tolist(), strict=True))
    found: dict[str, Difference | None] = dict.fromkeys(values)
    for name, result in known.items():
        found[name] = Difference(
            difference=result.difference,
            low=result.low,
            high=result.high,
            p_value=result.p_value,
            p_holm=adjusted[name],
        )
    seeds, episodes = values[selected].shape
    return found, _method(seeds, episodes, together, alpha)


def speaks_of(seeds: int) -> str:
    """Return what figures of so many training seeds are about."""
    if seeds == 1:
        return "one model of each learner on these test classes; claims about learners take --seeds 3 or more"
    if seeds < FEWEST_SEEDS:
        return f"{seeds} models of each learner on these test classes: too few seeds for claims about learners"
    return f"learners, by {seeds} training seeds each, on these test classes and episodes"


def _difference(a: Floats, b: Floats, alpha: float) -> PairedDifference | None:
    if len(a) == 1:
        return paired(a[0], b[0], alpha=alpha)
    return welch(a.mean(axis=1), b.mean(axis=1), alpha=alpha)


def _method(seeds: int, episodes: int, rivals: int, alpha: float) -> str:
    over = f"{episodes:,} test episodes, paired" if seeds == 1 else f"{seeds} training seeds each, Welch"
    level = f"{100 * (1 - alpha):.4g} %"
    return f"t intervals over {over}; {level} together over {rivals} comparisons (Bonferroni), p-values by Holm"
