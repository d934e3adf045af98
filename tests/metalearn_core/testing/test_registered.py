"""Every learner of the package goes through the kit that it ships."""

from collections.abc import Mapping
from typing import Any

import pytest

from metalearn_core.learners import LEARNERS
from metalearn_core.testing import Check, conformance_checks

# what a learner needs to fit the kit's episodes
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "reptile": {"options": {"eval_steps": 5}, "learns_from": "support"},
    "snail": {"options": {"shot": 2, "filters": 16, "keys": (8, 8, 8), "values": (8, 8, 8)}},
}


@pytest.mark.parametrize(
    "check",
    [check for name, kind in sorted(LEARNERS.items()) for check in conformance_checks(kind, **SETTINGS.get(name, {}))],
    ids=str,
)
def test_a_registered_learner_keeps_its_promises(check: Check) -> None:
    check()
