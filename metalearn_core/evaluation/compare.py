"""Compare two models on the same episodes, and say what that does and does not show."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from metalearn_core.bundle import load_bundle, read_training_images
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.leakage import Leakage, check_leakage
from metalearn_core.data.manifest import Record
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.subset import without_classes
from metalearn_core.errors import UsageError
from metalearn_core.evaluation.evaluate import Protocol, check_fit, domain_samplers, make_sampler
from metalearn_core.evaluation.scoring import EpisodeScores, Progress, Scorer
from metalearn_core.evaluation.statistics import PairedDifference, calibration_error, holm, paired
from metalearn_core.learners.contract import Learner
from metalearn_core.memory import kept_memory


class DomainComparison(Record):
    """The comparison over episodes whose classes all come from one domain.

    Attributes:
        difference: accuracy of a minus accuracy of b.
        low, high: simultaneous interval: with confidence 1 − alpha those of all domains hold at once.
        p_value: of no difference, two-sided, of this test alone.
        p_holm: the same, corrected for the number of domains.
        accuracy_a, accuracy_b: means over the episodes.
        episodes: how many.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    accuracy_a: float
    accuracy_b: float
    episodes: int


class Comparison(Record):
    """Two models on the same episodes. Accuracies and differences are fractions.

    Attributes:
        difference: accuracy of a minus accuracy of b.
        low, high: interval of the difference at confidence 1 − alpha, over episodes.
        p_value: of no difference, two-sided.
        accuracy_a, accuracy_b: means over the episodes.
        ece_a, ece_b: expected calibration errors.
        episodes: how many.
        alpha: the level.
        method: how the interval was made.
        by_domain: over within-domain episodes, corrected for the number of domains; None where a domain is too small.
        by_domain_reason: why, for those.
        classes: that were drawn from.
        excluded_classes: test classes left out because a model has seen them.
        conclusion: in one sentence, what can be concluded and what not.
        protocol: what was measured on.
        dataset_digest: of the dataset (with the classes that were left out).
        leakage: what of the split the two have seen in training; None where it was not looked at.
    """

    difference: float
    low: float
    high: float
    p_value: float
    accuracy_a: float
    accuracy_b: float
    ece_a: float
    ece_b: float
    episodes: int
    alpha: float = Field(gt=0, lt=1)
    method: str
    by_domain: dict[str, DomainComparison | None]
    by_domain_reason: dict[str, str]
    classes: int
    excluded_classes: int
    conclusion: str
    protocol: Protocol
    dataset_digest: str
    leakage: Leakage | None = None


def compare(
    a: Learner,
    b: Learner,
    dataset: EpisodeDataset,
    protocol: Protocol,
    *,
    exclude_classes: Collection[str] = frozenset(),
    alpha: float = 0.05,
    names: tuple[str, str] = ("model A", "model B"),
    scores_a: EpisodeScores | None = None,
) -> Comparison:
    """Compare two learners on the same episodes: a t interval of the differences between their accuracies.

    Of d domains each interval has confidence 1 − alpha/d (Bonferroni), so that all of them hold at once, and p-values
    are also given as Holm's: of twenty domains, one would else differ by chance.

    Args:
        a, b: the learners, of any kind, made for examples of the same shape.
        dataset: the examples.
        protocol: what to measure on.
        exclude_classes: content hashes of classes to leave out, since a model has seen them: `check_leakage`.
        alpha: the interval has confidence 1 − alpha. For the k-th look at the same classes: `statistics.look_alpha`.
        names: of a and b, for the conclusion.
        scores_a: of a on these very episodes, where it was evaluated on them already (`evaluate_scored`): it is not
            asked again.

    Raises:
        UsageError: before any work: too few classes are left, or a learner cannot take the episodes; or the scores are
            of other episodes.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}")
    for learner in (a, b):
        check_fit(learner, dataset, protocol)
    left = without_classes(dataset, protocol.split, exclude_classes)
    classes = len(left.manifest.of_split(protocol.split))
    excluded = len(dataset.manifest.of_split(protocol.split)) - classes
    samplers = _samplers((a, b), left, protocol, excluded)
    streams = [domain_samplers(learner, left, protocol) for learner in (a, b)]
    reasons = streams[0][1]
    each = protocol.episodes_by_domain(len(streams[0][0]))
    asked = 2 if scores_a is None else 1
    progress = Progress("compare", asked * protocol.episodes + 2 * each * len(streams[0][0]))
    scores, by_domain = [], []
    for learner, sampler, (domains, _), known in zip((a, b), samplers, streams, (scores_a, None), strict=True):
        with kept_memory(), Scorer(learner, protocol.batch_norm, progress) as scorer:
            scores.append(known or scorer.score(sampler, protocol.episodes))
            by_domain.append({name: scorer.score(one, each) for name, one in domains.items()})
    if not np.array_equal(scores[0].classes, scores[1].classes):
        raise UsageError("scores_a: these are scores of other episodes than those to compare on")
    result = paired(scores[0].accuracy, scores[1].accuracy, alpha=alpha)
    return Comparison(
        **_figures(result, scores[0], scores[1]),
        ece_a=calibration_error(*scores[0].calibration),
        ece_b=calibration_error(*scores[1].calibration),
        alpha=alpha,
        method=result.method,
        by_domain={
            **dict.fromkeys(reasons),
            **_domains(by_domain[0], by_domain[1], alpha),
        },
        by_domain_reason=reasons,
        classes=classes,
        excluded_classes=excluded,
        conclusion=_conclusion(result, protocol, alpha, names),
        protocol=protocol,
        dataset_digest=left.digest,
    )


def compare_bundles(
    a: Path,
    b: Path,
    dataset: EpisodeDataset,
    protocol: Protocol,
    *,
    alpha: float = 0.05,
    names: tuple[str, str] = ("model A", "model B"),
) -> Comparison:
    """Compare the models of two bundle folders, without the test classes that either has seen.

    Those are the classes that it was trained on, and all that share an image with its training, turned or not.

    Raises:
        MetalearnError: what `load_bundle` and `compare` raise.
    """
    (learner_a, one), (learner_b, other) = load_bundle(a), load_bundle(b)
    trained_on = {*one.lineage.training_class_digests, *other.lineage.training_class_digests}
    images = np.concatenate([read_training_images(a), read_training_images(b)])
    leakage = check_leakage(dataset, protocol.split, trained_on, images)
    seen = leakage.class_digests
    comparison = compare(learner_a, learner_b, dataset, protocol, exclude_classes=seen, alpha=alpha, names=names)
    return comparison.model_copy(update={"leakage": leakage})


def _samplers(
    learners: tuple[Learner, Learner], left: EpisodeDataset, protocol: Protocol, excluded: int
) -> list[EpisodeSampler]:
    """Return the learners' streams, each on its device; the error for too few classes says why they are few."""
    try:
        return [make_sampler(learner, left, protocol) for learner in learners]
    except UsageError as error:
        if not excluded:
            raise
        raise UsageError(
            f"{excluded} {protocol.split} classes are left out, since a model was trained on them or on images of "
            f"theirs; then {error}"
        ) from None


def _figures(result: PairedDifference, a: EpisodeScores, b: EpisodeScores) -> dict[str, Any]:
    return {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "p_value": result.p_value,
        "accuracy_a": float(a.accuracy.mean()),
        "accuracy_b": float(b.accuracy.mean()),
        "episodes": len(a.accuracy),
    }


def _domains(
    a: Mapping[str, EpisodeScores], b: Mapping[str, EpisodeScores], alpha: float
) -> dict[str, DomainComparison]:
    """Compare the two within each domain, at the level `alpha` for all domains together."""
    results = {name: paired(a[name].accuracy, b[name].accuracy, alpha=alpha / len(a)) for name in a}
    adjusted = holm([result.p_value for result in results.values()]).tolist()
    return {
        name: DomainComparison(**_figures(result, a[name], b[name]), p_holm=p_holm)
        for (name, result), p_holm in zip(results.items(), adjusted, strict=True)
    }


def _conclusion(result: PairedDifference, protocol: Protocol, alpha: float, names: tuple[str, str]) -> str:
    """Return one sentence; it speaks of these two models, never of the learners that made them."""
    a, b = names
    level = f"{100 * (1 - alpha):.4g} % interval"
    where = f"on the same {protocol.episodes:,} {protocol.split} episodes ({protocol.shape}, {protocol.batch_norm})"
    low, high = 100 * result.low, 100 * result.high
    if result.low > 0 or result.high < 0:
        better, worse, sign = (a, b, 1) if result.low > 0 else (b, a, -1)
        least, most = sorted((sign * low, sign * high))
        return (
            f"{better} is better than {worse} {where}: by {100 * abs(result.difference):.2f} points, {level} "
            f"{least:.2f} to {most:.2f}; this speaks of these two models on these classes, not of learners in general"
        )
    return (
        f"No difference between {a} and {b} is shown {where}: {100 * result.difference:+.2f} points, {level} "
        f"{low:+.2f} to {high:+.2f}; a difference within that interval can be neither shown nor ruled out, "
        "and this speaks of these two models on these classes"
    )
