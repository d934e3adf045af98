"""The rules of promotion, and the decision that follows from them: a pure function of figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from metalearn_core.data.manifest import Record


class GateRules(Record):
    """What a candidate must show to become the champion, on test episodes.

    Whatever the rules, the interval of its accuracy must lie above chance, one in `way`: a model that guesses is never
    promoted. Without a champion the absolute rules alone decide.
    """

    min_accuracy: float = Field(default=0.0, ge=0, le=1, description="least accuracy, a fraction")
    min_domain_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="least accuracy in every domain that has enough classes"
    )
    max_ece: float | None = Field(default=None, ge=0, le=1, description="largest expected calibration error")
    mode: Literal["superiority", "noninferiority"] = Field(
        default="superiority",
        description="be better than the champion by min_difference, or not worse by more than margin",
    )
    min_difference: float = Field(
        default=0.0, ge=0, lt=1, description="superiority: the lower bound of candidate − champion must exceed it"
    )
    margin: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="noninferiority: the lower bound of candidate − champion must exceed −margin",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="chance, over all looks at the same test classes, of promoting without reason",
    )
    episodes: int | None = Field(
        default=None, ge=2, description="test episodes of the comparison; None: as for the evaluation"
    )
    max_adaptation_ms: float | None = Field(
        default=None,
        gt=0,
        description="longest time to adapt to one support set, median in milliseconds, on the machine that decides",
    )
    dataset_checks: Literal["required", "ignored"] = Field(
        default="required", description="whether the data quality checks must have passed"
    )


@dataclass(frozen=True)
class Figures:
    """A candidate on test episodes: fractions, and milliseconds. A domain with too few classes has no accuracy."""

    accuracy: float
    ci95: float
    ece: float
    adaptation_ms: float
    chance: float
    by_domain: Mapping[str, float | None]


@dataclass(frozen=True)
class PairedFigures:
    """Candidate less champion on the same episodes; `low` is the lower bound at this look's level.

    Attributes:
        difference, low: fractions.
        accuracy, champion_accuracy: of the two, on these episodes.
        episodes: how many.
        look: the number of this comparison on these test classes, counted from 1.
        level: one-sided, what is left of alpha for this look.
    """

    difference: float
    low: float
    accuracy: float
    champion_accuracy: float
    episodes: int
    look: int
    level: float


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is to be promoted, and a sentence with figures for each rule, whichever way it went."""

    promoted: bool
    reasons: tuple[str, ...]


def decide(
    rules: GateRules, candidate: Figures, paired: PairedFigures | None, checks_passed: bool | None = None
) -> Decision:
    """Apply the rules.

    Args:
        rules: of the gate.
        candidate: its own figures.
        paired: the comparison with the champion; None where there is no champion.
        checks_passed: of the dataset; None where nobody checked, which is no pass.
    """
    verdicts = [*_absolute(rules, candidate), *_data(rules, checks_passed)]
    if paired is None:
        verdicts.append((True, "there is no champion: the absolute rules alone decide"))
    else:
        verdicts.append(_against_champion(rules, paired))
    failed = [text for passed, text in verdicts if not passed]
    return Decision(not failed, tuple(failed + [text for passed, text in verdicts if passed]))


def _absolute(rules: GateRules, candidate: Figures) -> list[tuple[bool, str]]:
    chance = candidate.chance
    low = candidate.accuracy - candidate.ci95
    figure = f"accuracy {candidate.accuracy:.4f} ± {candidate.ci95:.4f}"
    verdicts = [
        _judged(low > chance, f"{figure} is above chance, {chance:.4f}", f"{figure} is not above chance, {chance:.4f}")
    ]
    if rules.min_accuracy > 0:
        wanted = f"min_accuracy {rules.min_accuracy:g}"
        passed = candidate.accuracy >= rules.min_accuracy
        verdicts.append(_judged(passed, f"{figure} reaches {wanted}", f"{figure} is below {wanted}"))
    if rules.max_ece is not None:
        error, wanted = f"calibration error {candidate.ece:.4f}", f"max_ece {rules.max_ece:g}"
        passed = candidate.ece <= rules.max_ece
        verdicts.append(_judged(passed, f"{error} is within {wanted}", f"{error} exceeds {wanted}"))
    if rules.max_adaptation_ms is not None:
        spent, wanted = f"adaptation {candidate.adaptation_ms:.1f} ms", f"max_adaptation_ms {rules.max_adaptation_ms:g}"
        passed = candidate.adaptation_ms <= rules.max_adaptation_ms
        verdicts.append(_judged(passed, f"{spent} is within {wanted}", f"{spent} exceeds {wanted}"))
    if rules.min_domain_accuracy is not None:
        verdicts.append(_domains(rules.min_domain_accuracy, candidate.by_domain))
    return verdicts


def _domains(floor: float, by_domain: Mapping[str, float | None]) -> tuple[bool, str]:
    """Judge each domain that has a figure; one without says nothing, for or against."""
    known = {domain: accuracy for domain, accuracy in by_domain.items() if accuracy is not None}
    without = len(by_domain) - len(known)
    unknown = f" ({without} with too few classes to tell)" if without else ""
    if not known:
        return False, f"no domain has enough classes to show min_domain_accuracy {floor:g}{unknown}"
    worst = min(known, key=lambda domain: known[domain])
    figure = f"the weakest of {len(known)} domains, {worst}, has accuracy {known[worst]:.4f}{unknown}"
    wanted = f"min_domain_accuracy {floor:g}"
    return _judged(known[worst] >= floor, f"{figure}, which reaches {wanted}", f"{figure}, which is below {wanted}")


def _data(rules: GateRules, checks_passed: bool | None) -> list[tuple[bool, str]]:
    if rules.dataset_checks == "ignored":
        return []
    if checks_passed is None:
        return [(False, "the data quality checks were not made, and dataset_checks is required")]
    return [_judged(checks_passed, "the data quality checks passed", "a data quality check failed")]


def _against_champion(rules: GateRules, paired: PairedFigures) -> tuple[bool, str]:
    found = (
        f"candidate {paired.accuracy:.4f} against champion {paired.champion_accuracy:.4f} on the same "
        f"{paired.episodes} episodes: difference {paired.difference:+.4f}, at least {paired.low:+.4f} "
        f"(look {paired.look} at these test classes, one-sided level {paired.level:.4g})"
    )
    if rules.mode == "superiority":
        wanted = f"min_difference {rules.min_difference:g}"
        return _judged(
            paired.low > rules.min_difference, f"{found}: more than {wanted}", f"{found}: not above {wanted}"
        )
    wanted = f"margin {rules.margin:g}"
    return _judged(paired.low > -rules.margin, f"{found}: within {wanted}", f"{found}: not shown to be within {wanted}")


def _judged(passed: bool, good: str, bad: str) -> tuple[bool, str]:
    return passed, good if passed else bad
