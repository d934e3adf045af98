"""Tasks side by side on a CPU: one thread of torch each, which is quicker than threads inside each operation."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TypeVar

import torch

# Threads hold Python's lock for microseconds between operations of milliseconds: a waiting one asks for it soon.
_SWITCH_INTERVAL_S = 2e-4
# So many tasks for each thread are begun before the oldest result is taken: no thread waits for a slower one.
_AHEAD = 2

Task = TypeVar("Task")
Result = TypeVar("Result")
Waiting = Callable[[], AbstractContextManager[None]]


class SideBySide:
    """Runs tasks on threads, each with one thread of torch; without threads one after the other. A context manager.

    The calling thread is one of them: a further one would only wait, and take the processor from the others when it
    wakes. Results come in the order of the tasks, and do not depend on the number of threads. Few are held at a time,
    however many tasks there are: a task is begun when the result of one not far before it has been taken.

    Args:
        threads: how many; 0: none, as on a GPU, which needs none.
        waiting: gives what surrounds the calling thread's waiting for another one; it may raise, to wait no more.
    """

    def __init__(self, threads: int, waiting: Waiting = nullcontext) -> None:
        self._threads, self._waiting = threads, waiting
        self._pool: ThreadPoolExecutor | None = None
        self._before, self._interval_before = torch.get_num_threads(), sys.getswitchinterval()

    def __enter__(self) -> "SideBySide":
        self._before, self._interval_before = torch.get_num_threads(), sys.getswitchinterval()
        if self._threads > 1:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
            self._pool = ThreadPoolExecutor(
                self._threads - 1, thread_name_prefix="task", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            # Whoever ends the process has something to save first, and does not wait for what the others compute.
            self._pool.shutdown(wait=kind is None or issubclass(kind, Exception), cancel_futures=True)
            self._pool = None
            sys.setswitchinterval(self._interval_before)
        if self._threads:
            torch.set_num_threads(self._before)

    def map(self, task: Callable[[Task], Result], items: Iterable[Task]) -> Iterator[Result]:
        """Yield task(item) for each of the items, in order; where one raises, those not begun are dropped."""
        if self._threads:
            torch.set_num_threads(1)
        if self._pool is None:
            return map(task, items)
        return _shared(self._pool, task, items, _AHEAD * self._threads, self._waiting)


def _shared(
    pool: ThreadPoolExecutor, task: Callable[[Task], Result], items: Iterable[Task], ahead: int, waiting: Waiting
) -> Iterator[Result]:
    """Yield the results in order; while the next one is being computed, compute one that nobody has begun.

    Args:
        pool: what other threads compute.
        task, items: see `SideBySide.map`.
        ahead: of so many tasks, the next one among them, results are computed before that one's is taken.
        waiting: see `SideBySide`.
    """
    left = iter(items)
    queue: deque[tuple[Task, Future[Result]]] = deque()
    try:
        while True:
            queue.extend((item, pool.submit(task, item)) for item in islice(left, ahead - len(queue)))
            if not queue:
                return
            while not queue[0][1].done():
                begun = next((place for place, (_, future) in enumerate(queue) if future.cancel()), None)
                if begun is None:
                    break
                queue[begun] = queue[begun][0], _done(task, queue[begun][0])
            with waiting():
                result = queue.popleft()[1].result()
            yield result
    finally:
        for _, future in queue:
            future.cancel()


def _done(task: Callable[[Task], Result], item: Task) -> Future[Result]:
    """Return what a task gives or raises; its turn may not have come yet."""
    future: Future[Result] = Future()
    try:
        future.set_result(task(item))
    except Exception as error:
        future.set_exception(error)
    return future
