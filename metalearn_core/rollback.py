"""The way back: the champion before the present one becomes the champion again."""

import json
from datetime import UTC, datetime
from typing import Any

from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError
from metalearn_core.model_versions import (
    CHAMPION,
    CHAMPION_BEFORE_TAG,
    PREVIOUS,
    aliases_of,
    check_name,
    delete_alias,
    find_version,
    set_alias,
    tag_version,
)
from metalearn_core.promotion import PATIENCE_S, Contender
from metalearn_core.promotion_record import LONGEST_REASON, ROLLED_BACK_TAG
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
    with lock(f"promote {model_name}", timeout_s=PATIENCE_S):
        champion = aliases_of(model_name).get(CHAMPION)
        if champion is None:
            raise MetalearnError(f"model {model_name!r} has no champion: there is nothing to roll back")
        version = _champion_before(model_name, champion)
        earlier = str(version.version)
        Contender(model_name, version)
        record = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "asked_by": asked_by}
        why = reason or "no reason given"
        now = aliases_of(model_name).get(CHAMPION)
        if now != champion:
            changed = f"the champion changed from version {champion} to {now or 'none'} meanwhile"
            raise MetalearnError(f"model {model_name!r}: {changed}; nothing was moved: ask again")
        tag_version(  # before the alias: cut off in between, the same is asked for again, and ends at the same version
            model_name,
            champion,
            {ROLLED_BACK_TAG: json.dumps(record | {"to": earlier, "reason": why[:LONGEST_REASON]})},
        )
        set_alias(model_name, CHAMPION, earlier)
        still_earlier = version.tags.get(CHAMPION_BEFORE_TAG)
        if still_earlier:
            set_alias(model_name, PREVIOUS, still_earlier)
        else:
            delete_alias(model_name, PREVIOUS)
    return Rollback(
        model_name=model_name,
        version=earlier,
        champion_before=champion,
        reasons=(f"version {earlier} is the champion again, in place of version {champion} ({why})",),
    )


def _champion_before(model_name: str, champion: str) -> Any:
    """Return the version that was champion before another, past those that were rolled back themselves.

    Raises:
        MetalearnError: there is none.
    """
    passed = {champion}
    version = find_version(model_name, champion)
    while earlier := version.tags.get(CHAMPION_BEFORE_TAG):
        if earlier in passed:
            break
        passed.add(earlier)
        version = find_version(model_name, earlier)
        if ROLLED_BACK_TAG not in version.tags:
            return version
    raise MetalearnError(f"model {model_name!r}: version {champion} had no champion before it to go back to")
