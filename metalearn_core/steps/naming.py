"""What a learner of a run is called, wherever people read it."""

from collections.abc import Mapping
from typing import Any


def learner_name(item: Mapping[str, Any]) -> str:
    """Return a learner's name with the options that were set, from the JSON form of a `LearnerSpec`."""
    options = {**item["options"], **{f"backbone.{name}": value for name, value in item["backbone_options"].items()}}
    return " ".join([item["learner"], *(f"{name}={value}" for name, value in sorted(options.items()))])
