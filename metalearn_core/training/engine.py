"""Outer gradients of a batch of episodes: a chunk of tasks a thread, summed in the order of the tasks."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.contract import Statistics
from metalearn_core.data.manifest import Record
from metalearn_core.errors import UsageError
from metalearn_core.events import emit
from metalearn_core.full_precision import full_precision
from metalearn_core.learners.contract import Learner, Outcome
from metalearn_core.resources import available_cores
from metalearn_core.side_by_side import SideBySide
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.step_graph import StepGraph
from metalearn_core.training.termination import SigtermFlag, StopRequested
from metalearn_core.training.world import ALONE, World

LITTLE = 8  # a step is little work where a thread could take so many times its tasks at once

Drawn = TypeVar("Drawn")
_Result = tuple[tuple[Tensor, ...], Outcome]


class EngineChoices(Record):
    """What changes the last bits of a result: chosen when a run starts, and kept when it goes on.

    Attributes:
        device: `cpu` or `cuda`.
        threads: chunks side by side, or threads inside an operation where there is one chunk; 0 on a GPU.
        precision: of the convolutions; statistics, distances and losses are always fp32. Where it is bf16, the few
            convolutions that stay in fp32 may be TF32 on a GPU; elsewhere none is.
        chunks: that a step's tasks are cut into, as evenly as can be; a thread takes the tasks of one at once.
        graph: a chunk is computed by a CUDA graph of its size.
    """

    threads: int
    precision: str
    chunks: int
    device: Literal["cpu", "cuda"] = "cpu"
    graph: bool = False

    @classmethod
    def choose(
        cls, plan: TrainingPlan, tasks: int = 1, at_once: int = 1, processes: int = 1, *, varied: bool = False
    ) -> "EngineChoices":
        """Return the choices for this machine.

        Args:
            plan: what is asked for.
            tasks: of a step.
            at_once: how many of them a thread takes at once, at most.
            processes: that share the machine's cores, on which the chunks do not depend on their number; on GPUs, where
                all tasks of a process are quickest at once, each has at least one chunk.
            varied: episodes have masks, by which the work depends on what they hold: no graph can be recorded.

        Raises:
            UsageError: a GPU is asked for, and there is none.
        """
        device = _device(plan.device)
        precision: str = plan.precision
        if precision == "auto":
            precision = "bf16" if _native_bf16(device) else "fp32"
        cores, threads = available_cores(), 0
        # Of little work one thread is quicker, without others to wait for.
        little = plan.chunk is None and tasks > 1 and tasks * LITTLE <= at_once
        if plan.chunk is not None:
            chunks = math.ceil(tasks / plan.chunk)
        elif device == "cuda":
            chunks = processes
        else:
            chunks = 1 if little else cores * math.ceil(tasks / (cores * at_once))  # all cores are busy to the end
        chunks = min(tasks, chunks)
        if device == "cpu":
            # One chunk is the work of one process, whose threads change its last bits: their number is always the same.
            threads = plan.threads or (1 if little else cores if chunks == 1 else max(1, cores // processes))
        graph = device == "cuda" and not varied
        return cls(device=device, threads=threads, precision=precision, chunks=chunks, graph=graph)


def _device(asked: str) -> Literal["cpu", "cuda"]:
    there = asked != "cpu" and torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("device cuda: torch finds no GPU here: take --device cpu, or auto")
    return "cuda" if there else "cpu"


def _native_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class Gradient:
    """The outer gradient of a batch of episodes.

    Attributes:
        gradients: one a parameter, in the order of `parameters()`; means over the episodes.
        loss, accuracy: means over the episodes.
        statistics: batch-norm statistics, each (episodes, channels), in order.
    """

    gradients: tuple[Tensor, ...]
    loss: float
    accuracy: float
    statistics: Statistics


class Engine:
    """Runs chunks of tasks on threads. As a context manager it sets torch's threads and TF32, and puts them back.

    Args:
        choices: of threads and precision.
        world: the processes that share the tasks out.
        stop: set when the process is asked to end. Alone it leaves a step then, on a CPU in the middle of a chunk; of
            several processes on CPUs, all do between chunks, when one that has a chunk is asked to.
    """

    def __init__(self, choices: EngineChoices, world: World = ALONE, stop: SigtermFlag | None = None) -> None:
        self.choices, self._world, self._stop = choices, world, stop or SigtermFlag()
        waiting = self._stop.leaving_at_once if world.size == 1 else nullcontext
        self._side_by_side = SideBySide(choices.threads, waiting)
        self._threads_before = torch.get_num_threads()
        self._inside = ExitStack()
        self._graphs: dict[Hashable, StepGraph[_Result]] = {}
        self._stage: Hashable = None

    def __enter__(self) -> "Engine":
        self._threads_before = torch.get_num_threads()
        self._inside.enter_context(self._side_by_side)
        if self.choices.precision == "fp32":
            self._inside.enter_context(full_precision())
        torch.set_num_threads(self.choices.threads or self._threads_before)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._inside.__exit__(*raised)  # it makes a difference why it is left
        torch.set_num_threads(self._threads_before)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Run the convolutions and matrix products of a block in the precision that was chosen."""
        with torch.autocast(self.choices.device, torch.bfloat16, enabled=self.choices.precision == "bf16"):
            yield

    def gradient(self, learner: Learner, outcome: Callable[[slice], Outcome], tasks: int) -> Gradient:
        """Return what `drawn_gradient` does of tasks that are at hand; `outcome` gives that of those of a slice."""
        return self.drawn_gradient(learner, lambda chunk, _: chunk, outcome, tasks)

    def drawn_gradient(
        self,
        learner: Learner,
        draw: Callable[[slice, slice], Drawn],
        outcome: Callable[[Drawn], Outcome],
        tasks: int,
    ) -> Gradient:
        """Return the mean gradient over the tasks' losses.

        A single chunk uses the threads inside its operations; several run a thread each, so that the result does not
        depend on the number of threads, nor on that of processes. Each process draws its own chunks, a few ahead of
        those that it computes: memory does not grow with the number of tasks.

        Args:
            learner: whose parameters.
            draw: gives the tasks of a chunk, on the calling thread; it is told which chunk comes next, perhaps that of
                another step. For graphs, in the same tensors each time for a number of tasks.
            outcome: gives the outcome of what was drawn.
            tasks: how many.

        Raises:
            StopRequested: a process was asked to end.
            torch.OutOfMemoryError: a GPU's memory does not hold a chunk; alone, chunks are halved until they are one
                task each.
        """
        while True:
            try:
                return self._gradient(learner, draw, outcome, tasks)
            except torch.OutOfMemoryError:
                if self.choices.chunks >= tasks or self._world.size > 1:
                    raise
            self._graphs.clear()
            self.choices = self.choices.model_copy(update={"chunks": min(tasks, 2 * self.choices.chunks)})
            torch.cuda.empty_cache()

    def _gradient(
        self,
        learner: Learner,
        draw: Callable[[slice, slice], Drawn],
        outcome: Callable[[Drawn], Outcome],
        tasks: int,
    ) -> Gradient:
        parameters = list(learner.parameters())
        chunks = _chunks(tasks, min(tasks, self.choices.chunks))
        share = [chunks[number] for number in self._world.share(len(chunks))]
        following = [*share[1:], *(slice(chunk.start + tasks, chunk.stop + tasks) for chunk in share[:1])]
        alone_on_cpu = self._world.size == 1 and self.choices.device == "cpu"

        def drawn() -> Iterator[tuple[slice, Drawn]]:
            for chunk, after in zip(share, following, strict=True):
                if self._world.size == 1 and self._stop.is_set():
                    raise StopRequested
                yield chunk, draw(chunk, after)

        def run(tasks_of_chunk: Drawn) -> _Result:
            with self._stop.leaving_at_once() if alone_on_cpu else nullcontext():
                with self.precision():
                    result = outcome(tasks_of_chunk)
                    loss = result.losses.sum()
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            detached = Outcome(result.losses.detach(), result.accuracies.detach(), result.statistics)
            return gradients, detached

        def computed(part: tuple[slice, Drawn]) -> _Result:
            chunk, tasks_of_chunk = part
            if not self.choices.graph:
                return run(tasks_of_chunk)
            # What is drawn comes in the tensors of so many tasks, what is at hand in its own.
            key = (chunk.start, chunk.stop) if tasks_of_chunk is chunk else chunk.stop - chunk.start
            return self._replayed(lambda: run(tasks_of_chunk), key, learner.stage())

        alone = self.choices.chunks == 1  # in every step, not by chance in the last one: threads change its last bits
        if self.choices.threads:
            # Threads that help to sum what others compute take the processor from those, and wait while spinning.
            torch.set_num_threads(self.choices.threads if alone else 1)
        one_by_one = alone or self.choices.graph
        results = map(computed, drawn()) if one_by_one else self._side_by_side.map(computed, drawn())
        if self._world.size > 1:
            results = self._gathered(learner, results, [chunk.stop - chunk.start for chunk in chunks])
        return _mean(results, parameters)

    def _replayed(self, run: Callable[[], _Result], key: Hashable, stage: Hashable) -> _Result:
        """Return the result of a chunk from the graph of its key, recorded anew for each stage.

        The gradients are overwritten by the next replay.
        """
        if stage != self._stage:
            self._graphs.clear()
            self._stage = stage
        if key not in self._graphs:
            try:
                self._graphs[key] = StepGraph(run, next(iter(self._graphs.values()), None))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                emit("warning", "train", text=f"a step cannot be a CUDA graph, and is slower for it: {reason}")
                self.choices = self.choices.model_copy(update={"graph": False})
                return run()
        gradients, outcome = self._graphs[key].replay()
        statistics = {name: value.clone() for name, value in outcome.statistics.items()}
        return gradients, Outcome(outcome.losses.clone(), outcome.accuracies.clone(), statistics)

    def _gathered(self, learner: Learner, results: Iterator[_Result], sizes: Sequence[int]) -> Iterator[_Result]:
        """Yield the results of all chunks, of these sizes, those of other processes among them.

        Raises:
            StopRequested: a process was asked to end. All are told with the same chunk, and leave the step there.
        """
        shapes = [parameter.shape for parameter in learner.parameters()]
        lengths = [shape.numel() for shape in shapes]
        buffers = sorted((name, buffer.numel()) for name, buffer in learner.running_averages().items())
        own = (_flat(gradients, outcome, sizes[0], self._stop.is_set()) for gradients, outcome in results)
        last_round = (len(sizes) - 1) // self._world.size * self._world.size  # its first chunk: then all is computed
        for number, (size, vector) in enumerate(zip(sizes, self._world.gather(own, len(sizes)), strict=True)):
            *gradients, rest, asked = torch.split(vector, [*lengths, len(vector) - sum(lengths) - 1, 1])
            if number < last_round and self.choices.device == "cpu" and bool(asked):
                raise StopRequested
            rows = rest.view(sizes[0], -1)[:size]
            named = buffers if rows.shape[1] > 2 else []
            losses, accuracies, *found = torch.split(rows, [1, 1, *(channels for _, channels in named)], dim=1)
            statistics = {name: value for (name, _), value in zip(named, found, strict=True)}
            outcome = Outcome(losses[:, 0], accuracies[:, 0], statistics)
            yield tuple(g.view(shape) for g, shape in zip(gradients, shapes, strict=True)), outcome


def _chunks(tasks: int, count: int) -> list[slice]:
    """Cut tasks 0 … tasks − 1 into so many slices, the larger ones first."""
    sizes = [tasks // count + (number < tasks % count) for number in range(count)]
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _flat(gradients: tuple[Tensor, ...], outcome: Outcome, rows: int, stop: bool) -> Tensor:
    """Return everything that one chunk found as one vector: the gradients, so many rows, a task each, and `stop`."""
    columns = [outcome.losses, outcome.accuracies, *(outcome.statistics[name] for name in sorted(outcome.statistics))]
    each = torch.cat([column.view(len(outcome.losses), -1).to(outcome.losses.dtype) for column in columns], dim=1)
    padded = F.pad(each, (0, 0, 0, rows - len(each)))
    return torch.cat([*(gradient.reshape(-1) for gradient in gradients), padded.flatten(), padded.new_full((1,), stop)])


def _mean(results: Iterator[_Result], parameters: Sequence[Tensor]) -> Gradient:
    """Return the mean over tasks, summed in their order as they come in: memory does not grow with their number.

    Args:
        results: of the chunks.
        parameters: in whose memory layouts the gradients are, so that their norms are summed in one order.
    """
    found, first = next(results)
    sums = [torch.empty_like(parameter).copy_(value) for parameter, value in zip(parameters, found, strict=True)]
    outcomes = [first]
    for found, outcome in results:
        for total, value in zip(sums, found, strict=True):
            total.add_(value)
        outcomes.append(outcome)
    losses = torch.cat([outcome.losses for outcome in outcomes])
    accuracies = torch.cat([outcome.accuracies for outcome in outcomes])
    return Gradient(
        gradients=tuple(total / len(losses) for total in sums),
        loss=losses.mean().item(),
        accuracy=accuracies.mean().item(),
        statistics={name: torch.cat([outcome.statistics[name] for outcome in outcomes]) for name in first.statistics},
    )
