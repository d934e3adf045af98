from functools import partial

import pytest
from pydantic import ValidationError

from metalearn_core.gate import Decision, Figures, GateRules, PairedFigures, decide

judged = partial(decide, checks_passed=True)


def figures(accuracy: float = 0.9, **changes: object) -> Figures:
    by_domain = {"latin": 0.9, "greek": 0.8, "tiny": None}
    values = {"ci95": 0.01, "ece": 0.05, "adaptation_ms": 4.0, "chance": 0.2, "by_domain": by_domain}
    return Figures(accuracy=accuracy, **{**values, **changes})  # type: ignore[arg-type]


def paired(low: float, look: int = 1) -> PairedFigures:
    return PairedFigures(
        difference=low + 0.005, low=low, accuracy=0.9, champion_accuracy=0.9 - low - 0.005, episodes=1000,
        look=look, level=0.05 / (look * (look + 1)),
    )  # fmt: skip


def one_reason(decision: Decision, text: str) -> str:
    (found,) = [reason for reason in decision.reasons if text in reason]
    return found


def test_without_a_champion_the_absolute_rules_alone_decide() -> None:
    decision = judged(GateRules(), figures(), None)
    assert decision.promoted
    assert one_reason(decision, "no champion")
    assert one_reason(decision, "above chance") == "accuracy 0.9000 ± 0.0100 is above chance, 0.2000"


def test_a_model_that_guesses_is_never_promoted() -> None:
    decision = judged(GateRules(), figures(0.205), None)
    assert not decision.promoted
    assert decision.reasons[0] == "accuracy 0.2050 ± 0.0100 is not above chance, 0.2000"


@pytest.mark.parametrize(("floor", "promoted"), [(0.9, True), (0.901, False)])
def test_the_floor_is_on_the_accuracy(floor: float, promoted: bool) -> None:
    decision = judged(GateRules(min_accuracy=floor), figures(0.9), None)
    assert decision.promoted is promoted
    assert f"min_accuracy {floor:g}" in one_reason(decision, "min_accuracy")


@pytest.mark.parametrize(("floor", "promoted"), [(0.8, True), (0.81, False)])
def test_every_domain_with_enough_classes_must_reach_its_floor(floor: float, promoted: bool) -> None:
    decision = judged(GateRules(min_domain_accuracy=floor), figures(), None)
    assert decision.promoted is promoted
    assert "the weakest of 2 domains, greek, has accuracy 0.8000 (1 with too few" in one_reason(decision, "domain")


def test_a_floor_for_domains_is_not_passed_by_having_none() -> None:
    assert not judged(GateRules(min_domain_accuracy=0.1), figures(by_domain={"tiny": None}), None).promoted


@pytest.mark.parametrize(("limit", "promoted"), [(0.05, True), (0.04, False)])
def test_calibration_is_judged_where_a_limit_is_set(limit: float, promoted: bool) -> None:
    assert judged(GateRules(max_ece=limit), figures(), None).promoted is promoted


@pytest.mark.parametrize(("low", "promoted"), [(0.001, True), (0.0, False), (-0.001, False)])
def test_superiority_needs_a_lower_bound_above_the_difference(low: float, promoted: bool) -> None:
    decision = judged(GateRules(), figures(), paired(low))
    assert decision.promoted is promoted
    assert f"at least {low:+.4f}" in one_reason(decision, "champion")


def test_a_least_difference_is_added_to_superiority() -> None:
    assert not judged(GateRules(min_difference=0.01), figures(), paired(0.009)).promoted
    assert judged(GateRules(min_difference=0.01), figures(), paired(0.011)).promoted


@pytest.mark.parametrize(("low", "promoted"), [(-0.009, True), (-0.01, False)])
def test_noninferiority_lets_a_small_loss_pass(low: float, promoted: bool) -> None:
    assert judged(GateRules(mode="noninferiority", margin=0.01), figures(), paired(low)).promoted is promoted


def test_the_look_and_its_level_stand_in_the_reason() -> None:
    reason = one_reason(judged(GateRules(), figures(), paired(0.1, look=3)), "champion")
    assert "look 3 at these test classes, one-sided level 0.004167" in reason


def test_failed_checks_of_the_data_stand_against_promotion_unless_they_are_ignored() -> None:
    assert not decide(GateRules(), figures(), None, checks_passed=False).promoted
    assert decide(GateRules(dataset_checks="ignored"), figures(), None, checks_passed=False).promoted
    assert one_reason(decide(GateRules(), figures(), None, checks_passed=None), "were not made")
    assert not decide(GateRules(), figures(), None, checks_passed=None).promoted


def test_what_stands_against_promotion_comes_first() -> None:
    decision = judged(GateRules(min_accuracy=0.95), figures(), paired(0.1))
    assert "below min_accuracy 0.95" in decision.reasons[0]
    assert len(decision.reasons) == 4


@pytest.mark.parametrize(
    "rules", [{"min_acuracy": 0.5}, {"min_accuracy": 90}, {"alpha": 0}, {"mode": "better"}, {"margin": -0.1}]
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GateRules.model_validate(rules)


@pytest.mark.parametrize(("limit", "promoted"), [(3.9, False), (4.0, True)])
def test_a_model_that_adapts_too_slowly_is_not_promoted(limit: float, promoted: bool) -> None:
    decision = judged(GateRules(max_adaptation_ms=limit), figures(), None)
    assert decision.promoted is promoted
    assert "4.0 ms" in one_reason(decision, "max_adaptation_ms")
