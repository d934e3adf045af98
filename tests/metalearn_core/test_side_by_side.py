"""Tasks run side by side, and come back in their order."""

import threading

import pytest
import torch

from metalearn_core.side_by_side import SideBySide


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(threads: int) -> None:
    with SideBySide(threads) as side_by_side:
        assert list(side_by_side.map(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_each_thread_has_one_thread_of_torch_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    with SideBySide(2) as side_by_side:
        seen = list(side_by_side.map(lambda _: (torch.get_num_threads(), threading.current_thread().name), range(8)))
    assert {count for count, _ in seen} == {1}
    assert {name[:4] for _, name in seen} <= {"task", "Main"}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, 2])
def test_what_a_task_raises_is_the_callers(threads: int) -> None:
    with SideBySide(threads) as side_by_side, pytest.raises(ZeroDivisionError):
        list(side_by_side.map(lambda number: 1 // number, [1, 0, 1]))
