"""What a learner of a run is called, wherever people read it."""

import json
from collections.abc import Mapping
from typing import Any

DEFAULT_BACKBONE = "conv4"


def learner_name(item: Mapping[str, Any]) -> str:
    """Return a learner's name with the options that were set, from the JSON form of a `LearnerSpec`."""
    backbone = {f"backbone.{name}": value for name, value in item["backbone_options"].items()}
    if item["backbone"] != DEFAULT_BACKBONE:
        backbone["backbone"] = item["backbone"]
    options = {**item["options"], **backbone}
    return " ".join([item["learner"], *(f"{name}={value}" for name, value in sorted(options.items()))])


def learner_of(text: str) -> str:
    """Return what an item of the pipeline's loop is called, with a seed of its own; itself where it cannot be read."""
    try:
        item = json.loads(text)
        return learner_name(item) + (f" seed {item['seed']}" if "seed" in item else "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
