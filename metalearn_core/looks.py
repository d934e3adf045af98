"""How often a gate has looked at test classes: counted on the registered model, for as long as the model is there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metalearn_core.storage import text_digest
from metalearn_core.tracking_server import LONGEST_TAG, client, explained

LOOKS_TAG, CLASSES_TAG = "gate_looks", "gate_classes"
_CLASS_DIGITS = 10
_SEPARATOR = " "


def count_look(name: str, classes: Iterable[str], comparison: Sequence[Any]) -> int:
    """Count a look at test classes on a registered model, before it is taken, and return its number from 1.

    A look at classes of which only some were looked at before is a look at those again: its number is one more than the
    number of recorded looks whose classes overlap with these. So neither a class or a picture more in a rebuilt
    dataset, nor other episodes of old classes, count as fresh data. The same comparison again is the same look, and
    keeps its number.

    The record stands in tags of the model, none longer than the 5,000 characters that MLflow's databases hold, and
    none of it is forgotten: `gate_classes.SET.PART` has the short hashes of a set of classes, `gate_looks.SET.PART`
    the looks at that set, each as HASH:NUMBER.

    Args:
        name: of the registered model. Its promotions take turns, so that no two looks are counted at once.
        classes: what each of the test classes is known by, also when it has changed: `subset.class_sketches`.
        comparison: what tells it from others: a JSON value.
    """
    short = sorted({text_digest(digest)[:_CLASS_DIGITS] for digest in classes})
    identity, look = text_digest(short)[:16], text_digest(list(comparison))[:16]
    mlflow_client = client()
    with explained():
        tags = mlflow_client.get_registered_model(name).tags
        looks = {key: _parsed(parts) for key, parts in _recorded(tags, LOOKS_TAG).items()}
        if look in looks.get(identity, {}):
            return looks[identity][look]
        sets = {key: set(_SEPARATOR.join(parts).split()) for key, parts in _recorded(tags, CLASSES_TAG).items()}
        here = set(short)
        number = 1 + sum(len(looks.get(key, {})) for key, others in sets.items() if here & others)
        added = _appended(
            tags, f"{CLASSES_TAG}.{identity}", [one for one in short if one not in sets.get(identity, ())]
        )
        added |= _appended(tags, f"{LOOKS_TAG}.{identity}", [f"{look}:{number}"])  # last: a look has all its classes
        for tag, value in added.items():
            mlflow_client.set_registered_model_tag(name, tag, value)
    return number


def _recorded(tags: Mapping[str, str], kind: str) -> dict[str, list[str]]:
    """Return the values of a kind of tag by set of classes."""
    found: dict[str, list[str]] = {}
    for tag, value in tags.items():
        parts = tag.split(".")
        if len(parts) == 3 and parts[0] == kind:
            found.setdefault(parts[1], []).append(value)
    return found


def _parsed(parts: Iterable[str]) -> dict[str, int]:
    """Return the number of each look."""
    entries = (entry.split(":") for part in parts for entry in part.split(_SEPARATOR))
    return {look: int(number) for look, number in entries}


def _appended(tags: Mapping[str, str], prefix: str, entries: Sequence[str]) -> dict[str, str]:
    """Return the tags `prefix.PART` to set so that they hold these entries too, none of them longer than is allowed."""
    part = max(1, sum(tag.startswith(f"{prefix}.") for tag in tags))
    changed: dict[str, str] = {}
    value = tags.get(f"{prefix}.{part}", "")
    for entry in entries:
        longer = f"{value}{_SEPARATOR}{entry}" if value else entry
        if len(longer) > LONGEST_TAG:
            part, longer = part + 1, entry
        value = changed[f"{prefix}.{part}"] = longer
    return changed
