"""What a gate decided, kept on the version; and the champion moved where it says so, whatever is cut off in between."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from metalearn_core.bundle_fetch import NoSuchVersionError
from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError, UsageError, one_line
from metalearn_core.gate import GateRules
from metalearn_core.model_versions import (
    CHAMPION,
    CHAMPION_BEFORE_TAG,
    DECISION_TAG,
    PREVIOUS,
    aliases_of,
    champions_before,
    find_version,
    set_alias,
    tag_version,
    untag_version,
)
from metalearn_core.tracking_server import client, explained

ROLLED_BACK_TAG = "rolled_back"
LONGEST_REASON = 1000
NOTHING_MOVED = "nothing was moved"
_MOVING = "the alias was being moved when this was written: ask again"


class Promotion(Record):
    """What the gate decided, and on what figures.

    Attributes:
        model_name, version, learner, bundle_digest: of the candidate.
        promoted: it is the champion now (or was already).
        reasons: sentences with figures; where it was not promoted, what stood against it comes first.
        champion_before: the version that was the champion; None where there was none.
        look: the number of this comparison on these test classes, counted from 1; None where nothing was compared.
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
    """Return the outcome for the champion; where its promotion was cut off after the alias had moved, end that.

    The figures of the comparison are in the artifact that was written before the alias moved.
    """
    if not was_cut_off(version):
        return outcome
    decided = json.loads(version.tags[DECISION_TAG])
    ended = f"version {outcome.version} is the champion: its promotion was cut off, and is complete now"
    outcome = outcome.model_copy(
        update={
            "champion_before": next(iter(champions_before(version)), None),
            "reasons": (ended, *(reason for reason in decided["reasons"] if reason != _MOVING)),
            "rules": GateRules(**decided["rules"]) if "rules" in decided else outcome.rules,
            **{name: decided.get(name) for name in ("look", "asked_by", "forced", "dataset_digest")},
        }
    )
    _finish(outcome, version.run_id or None)
    return outcome


def commit(outcome: Promotion, run_id: str | None) -> Promotion:
    """Keep the decision, and move the champion where it says so, unless the champion changed since it was read.

    MLflow cannot move an alias on a condition. So all that can be written before is written before, and between the
    last look at the alias and the request that moves it there is nothing; another look follows it.
    """
    name, number, before = outcome.model_name, outcome.version, outcome.champion_before
    if not outcome.promoted:
        _record(outcome, run_id)
        return outcome
    _record(outcome.model_copy(update={"promoted": False, "reasons": (_MOVING, *outcome.reasons)}), run_id)
    _note_champion_before(name, number, before)
    now = aliases_of(name).get(CHAMPION)
    if now != before:
        changed = f"the champion changed from version {before or 'none'} to {now or 'none'} during the comparison"
        return _refused(outcome, f"{changed}: promote again to compare with the new one", run_id)
    with and_then(f"whether version {number} is the champion now is not known: ask again"):
        set_alias(name, CHAMPION, number)
        now = aliases_of(name).get(CHAMPION)
        if now != number:
            overtaken = f"overtaken by version {now or 'none'}, which another machine made the champion just after it"
            return _refused(outcome, f"{overtaken}: promote again to compare with it", run_id)
    _finish(outcome, run_id)
    return outcome


def _refused(outcome: Promotion, reason: str, run_id: str | None) -> Promotion:
    outcome = outcome.refused(reason)
    _record(outcome, run_id)
    return outcome


def _note_champion_before(name: str, number: str, before: str | None) -> None:
    """Note on a version which one it takes the place of, before those that it took the place of earlier."""
    earlier = champions_before(find_version(name, number))
    chain = [before, *(one for one in earlier if one != before)] if before else []
    tag_version(name, number, {CHAMPION_BEFORE_TAG: " ".join(chain)})


def _finish(outcome: Promotion, run_id: str | None) -> None:
    """Do what follows the champion's alias: the one before is the previous champion, and no rollback of either counts.

    The one before was the champion until now: where it is tagged as rolled back, that rollback was cut off.
    """
    with and_then(f"version {outcome.version} is the champion, its record is not complete: ask again"):
        if outcome.champion_before:
            with suppress(NoSuchVersionError):  # deleted since: no alias can point to it
                untag_version(outcome.model_name, outcome.champion_before, ROLLED_BACK_TAG)
                set_alias(outcome.model_name, PREVIOUS, outcome.champion_before)
        untag_version(outcome.model_name, outcome.version, ROLLED_BACK_TAG)
        _record(outcome, run_id)


@contextmanager
def and_then(consequence: str) -> Iterator[None]:
    """Say what an error inside the block has left behind, once: the innermost block knows best."""
    try:
        yield
    except (UsageError, _ToldError, UnexpectedError):
        raise
    except (MetalearnError, OSError) as error:
        raise _ToldError(f"{one_line(error)}; {consequence}") from None
    except Exception as error:
        raise UnexpectedError(f"{one_line(error)}; {consequence}") from error


class _ToldError(MetalearnError):
    """An error that says already what it has left behind."""


class UnexpectedError(RuntimeError):
    """A programming error that says what it has left behind. It is no `MetalearnError`: its trace is shown."""


def _record(outcome: Promotion, run_id: str | None) -> None:
    """Keep a decision whole as an artifact of its run, and in short on the version, whose tag is written last."""
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
    if run_id:
        with explained():
            client().log_dict(
                run_id,
                {**outcome.model_dump(mode="json"), "when": when},
                f"promotion/{outcome.model_name}-{outcome.version}-{time.time_ns() // 1_000_000}.json",
            )
    tags = {"promoted": str(outcome.promoted).lower(), DECISION_TAG: json.dumps(short, ensure_ascii=False)}
    tag_version(outcome.model_name, outcome.version, tags)
