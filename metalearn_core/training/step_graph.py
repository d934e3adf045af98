"""A part of a training step as a CUDA graph: captured once, then replayed without launching kernels one by one."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_WARM_UP = 3


class StepGraph(Generic[Result]):
    """What a function computes on a GPU from tensors that stay where they are, recorded once.

    Args:
        compute: reads the same tensors each time it is called, and neither waits for the GPU nor draws numbers.
        beside: a graph whose memory this one uses too: a replay of either overwrites the other's result.

    Raises:
        RuntimeError: it does something that cannot be recorded.
    """

    def __init__(self, compute: Callable[[], Result], beside: "StepGraph[Result] | None" = None) -> None:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels and take their memory before the recording
            for _ in range(_WARM_UP):
                compute()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=beside._graph.pool() if beside else None):
            self._result = compute()

    def replay(self) -> Result:
        """Compute anew from what the tensors hold now; the result is overwritten by the next replay."""
        self._graph.replay()
        return self._result


class HeldTensors:
    """Gives the tensors of each step in those of the first step of the same shapes, as a graph reads them."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], tuple[Tensor, ...]] = {}

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that those of these shapes always come in, overwritten with these."""
        kind = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if kind not in self._held:
            self._held[kind] = tensors
        else:
            for held, new in zip(self._held[kind], tensors, strict=True):
                held.copy_(new, non_blocking=True)
        return self._held[kind]
