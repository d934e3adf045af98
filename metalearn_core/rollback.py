"""The way back: the champion before the present one becomes the champion again."""

import json
from datetime import UTC, datetime
from typing import Any

from metalearn_core.bundle_fetch import NoSuchVersionError
from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError
from metalearn_core.model_versions import (
    CHAMPION,
    PREVIOUS,
    aliases_of,
    champions_before,
    check_name,
    delete_alias,
    find_version,
    set_alias,
    tag_version,
    untag_version,
)
from metalearn_core.promotion import PATIENCE_S, Contender
from metalearn_core.promotion_record import LONGEST_REASON, NOTHING_MOVED, ROLLED_BACK_TAG, and_then
from metalearn_core.tracking_server import lock


class Rollback(Record):
    """What a rollback did: `version` is the champion again, `champion_before` no longer."""

    model_name: str
    version: str
    champion_before: str
    reasons: tuple[str, ...]


def rollback(model_name: str, reason: str = "", asked_by: str = "") -> Rollback:
    """Make the champion before the present one the champion again, after checking that its bundle is whole.

    Args:
        model_name: of the registered model.
        reason: kept on the version that is champion no longer.
        asked_by: who or what asks; kept with it.

    Raises:
        MetalearnError: there is no champion or none before it, or the earlier version or its bundle is gone or damaged.
    """
    check_name(model_name)
    with lock(f"promote {model_name}", timeout_s=PATIENCE_S), and_then(NOTHING_MOVED):
        champion = aliases_of(model_name).get(CHAMPION)
        if champion is None:
            raise MetalearnError(f"model {model_name!r} has no champion: there is nothing to roll back")
        version = _champion_before(find_version(model_name, champion))
        if version is None:
            raise MetalearnError(f"model {model_name!r}: version {champion} had no champion before it to go back to")
        Contender(model_name, version)
        why = reason or "no reason given"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"when": when, "asked_by": asked_by, "to": str(version.version), "reason": why[:LONGEST_REASON]}
        _move(model_name, champion, version, record)
    return Rollback(
        model_name=model_name,
        version=str(version.version),
        champion_before=champion,
        reasons=(f"version {version.version} is the champion again, in place of version {champion} ({why})",),
    )


def _move(name: str, champion: str, version: Any, record: dict[str, str]) -> None:
    """Make `version` the champion in place of `champion`.

    The champion's alias comes last: cut off anywhere before, the same command finds the same champion, and ends at the
    same version; a step further back would be a second rollback.
    """
    earlier = str(version.version)
    previous = _previous(version, champion)
    now = aliases_of(name).get(CHAMPION)
    if now != champion:
        raise _changed(name, champion, now)
    tag_version(name, champion, {ROLLED_BACK_TAG: json.dumps(record)})
    if previous:
        set_alias(name, PREVIOUS, previous)
    else:
        delete_alias(name, PREVIOUS)
    now = aliases_of(name).get(CHAMPION)
    if now != champion:
        if now != earlier:
            untag_version(name, champion, ROLLED_BACK_TAG)
        raise _changed(name, champion, now)
    with and_then(f"whether version {earlier} is the champion again is not known: look at `metalearn models` first"):
        try:
            set_alias(name, CHAMPION, earlier)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            raise MetalearnError("interrupted") from error  # Ctrl-C while the answer is awaited


def _changed(name: str, champion: str, now: str | None) -> MetalearnError:
    return MetalearnError(f"model {name!r}: the champion changed from version {champion} to {now or 'none'} meanwhile")


def _previous(version: Any, champion: str) -> str | None:
    """Return the number of the version to go back to next, once `champion` is rolled back to `version`; None without.

    One that was deleted is none: no alias can point to it.
    """
    try:
        found = _champion_before(version, champion)
    except NoSuchVersionError:
        return None
    return None if found is None else str(found.version)


def _champion_before(version: Any, rolled_back: str | None = None) -> Any | None:
    """Return the version that was champion before another, past those that were rolled back; None where there is none.

    Args:
        version: MLflow's `ModelVersion`.
        rolled_back: the number of one that is about to be tagged as rolled back.

    Raises:
        NoSuchVersionError: one of those versions was deleted.
    """
    passed, pending = {str(version.version)}, champions_before(version)
    while pending:
        number, *pending = pending
        if number in passed:
            continue
        passed.add(number)
        earlier = find_version(version.name, number)
        if ROLLED_BACK_TAG not in earlier.tags and number != rolled_back:
            return earlier
        pending = [*champions_before(earlier), *pending]
    return None
