"""Tasks side by side on a CPU: one thread of torch each, which is quicker than threads inside each operation."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


class SideBySide:
    """Runs tasks on threads, each with one thread of torch; without threads one after the other. A context manager.

    Results come in the order of the tasks, and do not depend on the number of threads.

    Args:
        threads: how many; 0: none, as on a GPU, which needs none.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._before = torch.get_num_threads()

    def __enter__(self) -> "SideBySide":
        if self._threads:
            self._before = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                self._threads, thread_name_prefix="task", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            torch.set_num_threads(self._before)

    def map(self, task: Callable[[Task], Result], items: Iterable[Task]) -> Iterator[Result]:
        """Yield task(item) for each of the items, in order; where one raises, those not begun are dropped."""
        return map(task, items) if self._pool is None else self._pool.map(task, items)
