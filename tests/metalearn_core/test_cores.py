"""The cores to work with are counted in one place, on every system."""

import os

import pytest
import torch

from metalearn_core.cores import available_cores
from metalearn_core.evaluation.scoring import SideBySide


def test_a_process_that_is_bound_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_where_the_system_has_no_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == os.cpu_count()
    side_by_side = SideBySide(torch.device("cpu"))
    try:
        assert list(side_by_side.map(abs, [-1, 2])) == [1, 2]
    finally:
        side_by_side.close()
