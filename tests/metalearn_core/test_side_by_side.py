"""Tasks run side by side, and come back in their order."""

import threading
import time
import weakref

import pytest
import torch

from metalearn_core.side_by_side import SideBySide


class Held:
    """Counts the large results that are held at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._changing = threading.Lock()

    def result(self, _: int) -> torch.Tensor:
        """Return one, which counts for as long as it lives."""
        made = torch.zeros(100_000)
        self._add(1)
        weakref.finalize(made, self._add, -1)
        return made

    def _add(self, count: int) -> None:
        with self._changing:
            self.now += count
            self.most = max(self.most, self.now)


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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_few_results_are_held_however_many_tasks_there_are(threads: int) -> None:
    most = []
    for tasks in (20, 100):
        held = Held()
        with SideBySide(threads) as side_by_side:
            for _ in side_by_side.map(held.result, range(tasks)):
                time.sleep(0.002)  # the others would run ahead
        assert held.now <= 1
        most.append(held.most)
    assert max(most) <= 2 * threads + 2


def test_while_one_task_takes_long_others_are_done_beside_it() -> None:
    begun = threading.Event()
    done: list[int] = []

    def task(number: int) -> int:
        if number == 0:
            assert begun.wait(10), "no other task was begun meanwhile"
        elif number == 3:
            begun.set()
        done.append(number)
        return number

    with SideBySide(2) as side_by_side:
        assert list(side_by_side.map(task, range(12))) == list(range(12))
    assert done.index(3) < done.index(0)


def test_after_a_failure_few_more_tasks_are_begun() -> None:
    begun: list[int] = []

    def task(number: int) -> float:
        begun.append(number)
        return 1 / (number - 2)

    with SideBySide(2) as side_by_side, pytest.raises(ZeroDivisionError):
        list(side_by_side.map(task, range(100)))
    assert len(begun) < 12
