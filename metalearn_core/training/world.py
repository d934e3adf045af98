"""The processes that train one model together: who takes which tasks, and how what they found comes together.

`torchrun` starts them. Each task's gradient is found by one process and gathered by all, who sum them in the order of
the tasks: the result does not depend on the number of processes, to the last bit.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn_core.errors import MetalearnError, UsageError

_PATIENCE = timedelta(
    hours=2
)  # while one process validates, or waits for another run; torchrun ends the others at once


class PeerLostError(MetalearnError):
    """Another of the processes does not take part any more: if any knows why, it is that one."""


@dataclass(frozen=True)
class World:
    """One process among several; alone by default.

    Attributes:
        rank: of this process, from 0; the first one saves, reports and prints.
        size: how many there are.
        device: on which it trains.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that saves, reports and prints."""
        return self.rank == 0

    def share(self, tasks: int) -> range:
        """Return the tasks of this process among 0 … tasks − 1."""
        return range(self.rank, tasks, self.size)

    def gather(self, own: Iterable[Tensor], tasks: int) -> Iterator[Tensor]:
        """Yield a vector for each task, in the order of the tasks, from those (n,) of each process's share.

        A round brings one vector of each process, so that memory does not grow with the number of tasks.
        """
        vectors = iter(own)
        if self.size == 1:
            yield from vectors
            return
        mine = next(vectors, None)
        length = torch.tensor([0 if mine is None else len(mine), int(mine is not None and mine.dtype == torch.float64)])
        _broadcast(length)  # the first process always has a task
        dtype = torch.float64 if length[1] else torch.float32
        nothing = torch.zeros(int(length[0]), dtype=dtype, device=self.device)
        for first in range(0, tasks, self.size):
            every = [torch.empty_like(nothing) for _ in range(self.size)]
            with _together():
                dist.all_gather(every, nothing if mine is None else mine)
            yield from every[: tasks - first]
            mine = next(vectors, None)

    def agree(self, *values: float) -> tuple[float, ...]:
        """Return the values of the first process."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        _broadcast(shared)
        return tuple(shared.tolist())

    def tell(self, content: bytes) -> bytes:
        """Return the content of the first process."""
        if self.size == 1:
            return content
        (length,) = self.agree(len(content))
        shared = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads and content:
            shared = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        _broadcast(shared)
        return shared.numpy().tobytes()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        with _together():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            with _together():
                dist.barrier()


ALONE = World()


def _broadcast(shared: Tensor) -> None:
    """Overwrite a tensor with that of the first process."""
    with _together():
        dist.broadcast(shared, 0)


@contextmanager
def _together() -> Iterator[None]:
    """Say what an error of the transport means, whose own text is about its sockets.

    Raises:
        PeerLostError: another process is gone, or has not answered in time.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLostError("another training process has ended, or does not answer") from error


@contextmanager
def joined(device: str = "cpu") -> Iterator[World]:
    """Join the processes that torchrun started beside this one; without torchrun, be alone.

    Args:
        device: `cpu`; `cuda`: each process has the GPU of its number on its machine; `auto`: a GPU where there is one.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= there:
            raise UsageError(f"processes: each has a GPU of its own, and this machine has {there}: ask for fewer")
        torch.cuda.set_device(number)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), "cuda" if on_gpus else "cpu")
    finally:
        dist.destroy_process_group()
