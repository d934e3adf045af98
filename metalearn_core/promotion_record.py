"""What a gate decided, kept on the version; and the champion moved where it says so, whatever is cut off in between."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.gate import GateRules
from metalearn_core.model_versions import (
    CHAMPION,
    CHAMPION_BEFORE_TAG,
    DECISION_TAG,
    PREVIOUS,
    aliases_of,
    set_alias,
    tag_version,
    untag_version,
)
from metalearn_core.tracking_server import client, explained

ROLLED_BACK_TAG = "rolled_back"
LONGEST_REASON = 1000
_MOVING = "the alias was being moved when this was written: ask again"


class Promotion(Record):
    """What the gate decided, and on what figures.

    Attributes:
        model_name, version, learner, bundle_digest: of the candidate.
        promoted: it is the champion now (or was already).
        reasons: sentences with figures; where it was not promoted, what stood against it comes first.
        champion_before: the version that was the champion; None where there was none.
        look: the how-manieth comparison on these test classes; None where nothing was compared.
        rules: of the gate.
        dataset_digest: of the episode dataset that was used; None where none was.
        asked_by: who or what asked for the decision.
        forced: the reason of the person who promoted it against the rules; None where the rules decided.
        evaluation, comparison: their JSON forms; None where they were not made.
    """

    model_name: str
    version: str
    learner: str
    bundle_digest: str
    promoted: bool
    reasons: tuple[str, ...]
    champion_before: str | None
    look: int | None = None
    rules: GateRules
    dataset_digest: str | None = None
    asked_by: str = ""
    forced: str | None = None
    evaluation: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None

    def refused(self, reason: str) -> "Promotion":
        """Return it as not promoted, for one reason."""
        return self.model_copy(update={"promoted": False, "reasons": (reason,)})


def was_cut_off(version: Any) -> bool:
    """Return whether the promotion of a version ended before its record was complete."""
    return _MOVING in version.tags.get(DECISION_TAG, "")


def completed(outcome: Promotion, version: Any) -> Promotion:
    """Return the outcome for the champion; where its promotion was cut off after the alias had moved, end that."""
    if not was_cut_off(version):
        return outcome
    decided = json.loads(version.tags[DECISION_TAG])
    outcome = outcome.model_copy(
        update={
            "champion_before": version.tags.get(CHAMPION_BEFORE_TAG) or None,
            "reasons": (f"version {outcome.version} is the champion: its promotion was cut off, and is complete now",),
            "rules": GateRules(**decided["rules"]) if "rules" in decided else outcome.rules,
            **{name: decided.get(name) for name in ("look", "asked_by", "forced", "dataset_digest")},
        }
    )
    _finish(outcome, version.run_id or None)
    return outcome


def commit(outcome: Promotion, run_id: str | None) -> Promotion:
    """Keep the decision, and move the champion where it says so, unless the champion changed since it was read."""
    name, before = outcome.model_name, outcome.champion_before
    if not outcome.promoted:
        _record(outcome, run_id)
        return outcome
    _record(outcome.refused(_MOVING), None)
    now = aliases_of(name).get(CHAMPION)
    if now != before:
        changed = f"the champion changed from version {before or 'none'} to {now or 'none'} during the comparison"
        outcome = outcome.refused(f"{changed}: promote again to compare with the new one")
        _record(outcome, run_id)
        return outcome
    tag_version(name, outcome.version, {CHAMPION_BEFORE_TAG: before or ""})
    with and_then(f"whether version {outcome.version} is the champion now is not known: ask again"):
        set_alias(name, CHAMPION, outcome.version)
    _finish(outcome, run_id)
    return outcome


def _finish(outcome: Promotion, run_id: str | None) -> None:
    """Do what follows the champion's alias: the one before is the previous champion, a rollback is forgotten."""
    with and_then(f"version {outcome.version} is the champion, its record is not complete: ask again"):
        if outcome.champion_before:
            set_alias(outcome.model_name, PREVIOUS, outcome.champion_before)
        untag_version(outcome.model_name, outcome.version, ROLLED_BACK_TAG)
        _record(outcome, run_id)


@contextmanager
def and_then(consequence: str) -> Iterator[None]:
    """Say what an error inside the block has left behind, once: the innermost block knows best."""
    try:
        yield
    except (UsageError, _ToldError):
        raise
    except MetalearnError as error:
        raise _ToldError(f"{error}; {consequence}") from None


class _ToldError(MetalearnError):
    """An error that says already what it has left behind."""


def _record(outcome: Promotion, run_id: str | None) -> None:
    """Keep a decision in short on the version, and whole as an artifact of its run."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    short = {
        "promoted": outcome.promoted,
        "when": when,
        "champion_before": outcome.champion_before,
        "dataset_digest": outcome.dataset_digest,
        "rules": outcome.rules.model_dump(mode="json", exclude_none=True),
        "look": outcome.look,
        "asked_by": outcome.asked_by,
        "forced": outcome.forced and outcome.forced[:LONGEST_REASON],
        "reasons": [reason[:500] for reason in outcome.reasons],
    }
    tag = {DECISION_TAG: json.dumps(short, ensure_ascii=False), "promoted": str(outcome.promoted).lower()}
    tag_version(outcome.model_name, outcome.version, tag)
    if run_id:
        with explained():
            client().log_dict(
                run_id,
                {**outcome.model_dump(mode="json"), "when": when},
                f"promotion/{outcome.model_name}-{outcome.version}-{time.time_ns() // 1_000_000}.json",
            )
