"""Batches of a stream, drawn one ahead in the background: they are read from disk while the last one is used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

Batch = TypeVar("Batch")


class Prefetch(Generic[Batch]):
    """Draws batches in their order; a context manager, which outside its block draws each when it is asked for.

    Args:
        draw: gives the batch of so many episodes from a number on.
    """

    def __init__(self, draw: Callable[[int, int], Batch]) -> None:
        self._draw = draw
        self._pool: ThreadPoolExecutor | None = None
        self._drawn: tuple[tuple[int, int], Future[Batch]] | None = None

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(
            1, thread_name_prefix="prefetch", initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._drawn = None

    def __call__(self, first: int, count: int, ahead: tuple[int, int] | None = None) -> Batch:
        """Return the batch first … first + count − 1, and begin to draw the one that comes next.

        Args:
            first: its first episode.
            count: how many it has.
            ahead: the same two of the next one; None: as many after it.
        """
        drawn, self._drawn = self._drawn, None
        batch = drawn[1].result() if drawn and drawn[0] == (first, count) else self._draw(first, count)
        if self._pool is not None:
            following = ahead or (first + count, count)
            self._drawn = following, self._pool.submit(self._draw, *following)
        return batch
