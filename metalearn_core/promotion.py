"""Who is the champion: the gate compares a candidate with it on the same test episodes."""

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn_core.bundle import BundleDescription, read_bundle, read_training_images, verify_bundle
from metalearn_core.bundle_fetch import DIGEST_TAG, fetch_bundle
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.gate import Decision, Figures, GateRules, PairedFigures, decide
from metalearn_core.looks import count_look
from metalearn_core.model_versions import (
    CHAMPION,
    LEARNER_TAG,
    aliases_of,
    check_name,
    find_version,
)
from metalearn_core.promotion_record import (
    NOTHING_MOVED,
    ROLLED_BACK_TAG,
    Promotion,
    and_then,
    commit,
    completed,
    was_cut_off,
)
from metalearn_core.tracking_server import lock

if TYPE_CHECKING:
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.evaluation.evaluate import Protocol
    from metalearn_core.learners.contract import Learner

PATIENCE_S = 3600.0


class Contender:
    """A registered version with its bundle, fetched and checked.

    Args:
        name: of the registered model.
        version: MLflow's `ModelVersion`.

    Raises:
        MetalearnError: its bundle is damaged, or not the one that was registered.
    """

    def __init__(self, name: str, version: Any) -> None:
        self.number = str(version.version)
        self.run_id = version.run_id or None
        self.folder: Path = fetch_bundle(name, None, self.number)
        self.digest = verify_bundle(self.folder)
        self.description: BundleDescription = read_bundle(self.folder)
        self.training_images = read_training_images(self.folder)

    @cached_property
    def learner(self) -> "Learner":
        """The learner, loaded once."""
        from metalearn_core.bundle import load_bundle

        return load_bundle(self.folder)[0]


def promote(
    model_name: str,
    candidate: str,
    dataset: "EpisodeDataset | None",
    protocol: "Protocol",
    rules: GateRules | None = None,
    *,
    checks_passed: bool | None = None,
    after_rollback: bool = False,
    asked_by: str = "",
    force: str | None = None,
) -> Promotion:
    """Let the gate decide whether a version becomes the champion, and keep the decision, whichever way it goes.

    Both models are evaluated on the same episodes of test classes that neither has seen in training. Each comparison
    counts as a look at those classes: the k-th at any of them must pass at alpha / (k (k + 1)), which sums to alpha
    over all looks; the same comparison again is the same look (`looks.count_look`). The decision stands in the
    version's tags and, with all figures, in its run's artifacts. Promotions of one model on one machine take turns;
    where the champion changed all the same, nothing moves.

    Args:
        model_name: of the registered model.
        candidate: an alias or version number.
        dataset: whose test classes are used; None: there is none any more, and only force can promote.
        protocol: the episodes; its split must be test, its mode inductive.
        rules: of the gate.
        checks_passed: whether the dataset passed its quality checks; None where they were not made, which stands
            against promotion unless the rules ignore them.
        after_rollback: judge a version also where it was rolled back before: a person asks for it. Otherwise that is
            a reason against it, or the next run of the same pipeline would undo the rollback.
        asked_by: who or what asks; kept with the decision.
        force: a person's reason to promote it whatever the rules say; kept with the decision and what stood against it.

    Raises:
        UsageError: the candidate cannot take episodes of this dataset, or the protocol is not one for a gate.
        MetalearnError: no such model or version, its bundle is damaged, or the tracking server does not answer.
    """
    from metalearn_core.evaluation.evaluate import Protocol

    rules = rules or GateRules()
    check_name(model_name)
    if protocol.split != "test" or protocol.batch_norm != "inductive":
        raise UsageError(f"the gate judges inductively on test episodes, got {protocol.batch_norm} on {protocol.split}")
    if rules.episodes:
        protocol = Protocol(**{**protocol.model_dump(), "episodes": rules.episodes})
    with lock(f"promote {model_name}", timeout_s=PATIENCE_S), and_then(NOTHING_MOVED):
        version = find_version(model_name, candidate)
        asked = {"asked_by": asked_by, "dataset_digest": None if dataset is None else dataset.digest}
        outcome = _unchanged(model_name, version, rules).model_copy(update=asked)
        if outcome.champion_before == outcome.version:
            return completed(outcome, version)
        if ROLLED_BACK_TAG in version.tags and not after_rollback:
            return commit(outcome.refused(_rolled_back(outcome, version)), version.run_id or None)
        contender = Contender(model_name, version)
        if dataset is not None:
            outcome = _judge(outcome, contender, dataset, protocol, checks_passed)
        else:
            outcome = outcome.refused("nothing was compared: its dataset is not there any more")
        if force is not None and not outcome.promoted:
            reasons = (f"promoted by force: {force}", *outcome.reasons)
            outcome = outcome.model_copy(update={"promoted": True, "forced": force, "reasons": reasons})
        return commit(outcome, contender.run_id)


def standing(model_name: str, candidate: str, rules: GateRules) -> Promotion | None:
    """Return the outcome of promoting a version that is the champion already, which needs no data; None for any other.

    None as well where its promotion was cut off: `promote` ends that, in its turn.

    Raises:
        MetalearnError: no such model or version, or the tracking server does not answer.
    """
    check_name(model_name)
    with and_then(NOTHING_MOVED):
        version = find_version(model_name, candidate)
        outcome = _unchanged(model_name, version, rules)
    return outcome if outcome.champion_before == outcome.version and not was_cut_off(version) else None


def _unchanged(model_name: str, version: Any, rules: GateRules) -> Promotion:
    return Promotion(
        model_name=model_name,
        version=str(version.version),
        learner=version.tags.get(LEARNER_TAG, ""),
        bundle_digest=version.tags.get(DIGEST_TAG, ""),
        promoted=True,
        reasons=(f"version {version.version} is the champion already: nothing was changed",),
        champion_before=aliases_of(model_name).get(CHAMPION),
        rules=rules,
    )


def _judge(
    outcome: Promotion,
    candidate: Contender,
    dataset: "EpisodeDataset",
    protocol: "Protocol",
    checks_passed: bool | None,
) -> Promotion:
    """Return the outcome with the gate's decision in it; what cannot be compared is a reason, not a failure."""
    import numpy as np

    from metalearn_core.data.leakage import check_leakage
    from metalearn_core.evaluation.evaluate import check_fit

    check_fit(candidate.learner, dataset, protocol)
    champion = None
    if outcome.champion_before:
        try:
            champion = Contender(outcome.model_name, find_version(outcome.model_name, outcome.champion_before))
            if reason := _incomparable(candidate, champion, protocol):
                return outcome.refused(f"{reason}: {_remedy()}")
            check_fit(champion.learner, dataset, protocol)
        except MetalearnError as error:
            return outcome.refused(f"the champion cannot be compared: {error}; {_remedy()}")
    contenders = [candidate, champion] if champion else [candidate]
    trained_on = {digest for one in contenders for digest in one.description.lineage.training_class_digests}
    images = np.concatenate([one.training_images for one in contenders])
    seen = set(check_leakage(dataset, protocol.split, trained_on, images).class_digests)
    try:
        return _measured(outcome, candidate, champion, dataset, protocol, checks_passed, seen)
    except UsageError as error:
        if not seen:
            raise
        why = f"{len(seen)} test classes are left out, since a model was trained on them or on images of theirs"
        return outcome.refused(f"the candidate cannot be judged: {why}; then {error}")


def _rolled_back(outcome: Promotion, version: Any) -> str:
    """Return why a version that was rolled back does not become the champion again by itself."""
    record = json.loads(version.tags[ROLLED_BACK_TAG])
    command = shlex.join(["metalearn", "promote", f"models:/{outcome.model_name}/{outcome.version}"])
    when, why = record["when"][:10], record["reason"]
    return f"version {outcome.version} was rolled back on {when} ({why}): {command} asks for it again"


def _incomparable(candidate: Contender, champion: Contender, protocol: "Protocol") -> str | None:
    """Return why the two cannot be asked the same episodes; None where they can."""
    ours, theirs = candidate.description.input, champion.description.input
    if (ours.modality, ours.example_shape) != (theirs.modality, theirs.example_shape):
        return (
            f"the champion (version {champion.number}) takes {theirs.modality} examples of {theirs.example_shape}, the "
            f"candidate {ours.modality} examples of {ours.example_shape}; they cannot be asked the same episodes"
        )
    way = champion.description.way
    if way is not None and way != protocol.way:
        return (
            f"the champion (version {champion.number}, {champion.description.learner}) is built for {way}-way "
            f"episodes, and these are {protocol.way}-way; they cannot be asked the same episodes"
            + (f" but with --way {way}" if candidate.description.way in (None, way) else "")
        )
    return None


def _remedy() -> str:
    return "register the candidate under another model name, or promote it by --force with a --reason, which is kept"


def _measured(
    outcome: Promotion,
    candidate: Contender,
    champion: Contender | None,
    dataset: "EpisodeDataset",
    protocol: "Protocol",
    checks_passed: bool | None,
    seen: set[str],
) -> Promotion:
    """Evaluate the candidate, and compare it with the champion, without the test classes that either has `seen`."""
    from metalearn_core.data.subset import class_sketches, without_classes
    from metalearn_core.evaluation.compare import compare
    from metalearn_core.evaluation.evaluate import evaluate_scored
    from metalearn_core.evaluation.statistics import look_alpha

    unseen = without_classes(dataset, protocol.split, seen)
    by_domain = None if outcome.rules.min_domain_accuracy is not None else 0
    evaluation, scores = evaluate_scored(
        candidate.learner, unseen, protocol.model_copy(update={"domain_episodes": by_domain})
    )
    figures = Figures(
        accuracy=evaluation.accuracy,
        ci95=evaluation.ci95,
        ece=evaluation.ece,
        adaptation_ms=evaluation.adaptation_ms,
        chance=scores.chance,
        by_domain={name: result.accuracy if result else None for name, result in evaluation.by_domain.items()},
    )
    if champion is None:
        decision = decide(outcome.rules, figures, None, checks_passed)
        return _decided(outcome, decision, evaluation=evaluation.model_dump(mode="json"))
    look = count_look(
        outcome.model_name,
        class_sketches(unseen, protocol.split),
        [candidate.digest, champion.digest, unseen.digest, protocol.model_dump(exclude={"domain_episodes"})],
    )
    level = look_alpha(outcome.rules.alpha, look)
    comparison = compare(
        candidate.learner,
        champion.learner,
        dataset,
        protocol.model_copy(update={"domain_episodes": 0}),
        exclude_classes=seen,
        alpha=2 * level,  # the lower end of this two-sided interval is the one-sided bound
        names=("the candidate", "the champion"),
        scores_a=scores,
    )
    paired = PairedFigures(
        difference=comparison.difference,
        low=comparison.low,
        accuracy=comparison.accuracy_a,
        champion_accuracy=comparison.accuracy_b,
        episodes=comparison.episodes,
        look=look,
        level=level,
    )
    decision = decide(outcome.rules, figures, paired, checks_passed)
    return _decided(
        outcome,
        decision,
        look=look,
        evaluation=evaluation.model_dump(mode="json"),
        comparison=comparison.model_dump(mode="json"),
    )


def _decided(outcome: Promotion, decision: Decision, **figures: Any) -> Promotion:
    return outcome.model_copy(update={"promoted": decision.promoted, "reasons": decision.reasons, **figures})
