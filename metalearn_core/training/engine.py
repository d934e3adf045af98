"""Outer gradients of a batch of episodes: one task a thread, summed in the order of the tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn_core.backbones.contract import Statistics
from metalearn_core.data.manifest import Record
from metalearn_core.learners.contract import Learner, Outcome
from metalearn_core.resources import available_cores
from metalearn_core.side_by_side import SideBySide
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.world import ALONE, World

_Result = tuple[tuple[Tensor, ...], Outcome]


class EngineChoices(Record):
    """What changes the last bits of a result: chosen when a run starts, and kept when it goes on.

    Attributes:
        threads: tasks side by side, or threads inside an operation where there is one task at a time.
        precision: of the convolutions; statistics, distances and losses are always fp32.
    """

    threads: int
    precision: str

    @classmethod
    def choose(cls, plan: TrainingPlan, processes: int = 1) -> "EngineChoices":
        """Return the choices for this machine, whose cores so many processes share."""
        precision: str = plan.precision
        if precision == "auto":
            precision = "bf16" if _native_bf16() else "fp32"
        return cls(threads=plan.threads or max(1, available_cores() // processes), precision=precision)


def _native_bf16() -> bool:
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
    """Runs tasks on threads. As a context manager it sets torch's threads, and puts them back.

    Args:
        choices: of threads and precision.
        world: the processes that share the tasks out.
    """

    def __init__(self, choices: EngineChoices, world: World = ALONE) -> None:
        self.choices, self._world = choices, world
        self._side_by_side = SideBySide(choices.threads)
        self._threads_before = torch.get_num_threads()

    def __enter__(self) -> "Engine":
        self._threads_before = torch.get_num_threads()
        self._side_by_side.__enter__()
        torch.set_num_threads(self.choices.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._side_by_side.__exit__()
        torch.set_num_threads(self._threads_before)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Run the convolutions and matrix products of a block in the precision that was chosen."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.choices.precision == "bf16"):
            yield

    def gradient(self, learner: Learner, outcome: Callable[[int], Outcome], tasks: int) -> Gradient:
        """Return the mean gradient over the tasks' losses.

        One task alone uses the threads inside its operations; several run side by side, a thread each, so that the
        result does not depend on the number of threads.

        Args:
            learner: whose parameters.
            outcome: gives the outcome of one task, by its number.
            tasks: how many.
        """
        parameters = list(learner.parameters())
        share = self._world.share(tasks)

        def run(number: int) -> tuple[tuple[Tensor, ...], Outcome]:
            with self.precision():
                result = outcome(number)
                loss = result.losses.sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            detached = Outcome(result.losses.detach(), result.accuracies.detach(), result.statistics)
            return gradients, detached

        # Threads of torch that help to sum what others compute take the processor from those, and wait while spinning.
        torch.set_num_threads(self.choices.threads if tasks == 1 else 1)
        results = map(run, share) if tasks == 1 else self._side_by_side.map(run, share)
        return _mean(results if self._world.size == 1 else self._gathered(learner, results, tasks))

    def _gathered(self, learner: Learner, results: Iterator[_Result], tasks: int) -> Iterator[_Result]:
        """Yield the results of all tasks, those of other processes among them."""
        shapes = [parameter.shape for parameter in learner.parameters()]
        sizes = [shape.numel() for shape in shapes]
        names = sorted(name for name, _ in learner.backbone.named_buffers())
        channels = [buffer.numel() for _, buffer in sorted(learner.backbone.named_buffers())]
        own = [_flat(gradients, outcome) for gradients, outcome in results]
        for vector in self._world.gather(own, tasks):
            *gradients, loss, accuracy, statistics = torch.split(vector, [*sizes, 1, 1, len(vector) - sum(sizes) - 2])
            found = torch.split(statistics, channels) if len(statistics) else ()
            outcome = Outcome(loss, accuracy, {name: value[None] for name, value in zip(names, found, strict=False)})
            yield tuple(g.view(shape) for g, shape in zip(gradients, shapes, strict=True)), outcome


def _flat(gradients: tuple[Tensor, ...], outcome: Outcome) -> Tensor:
    """Return everything that one task found as one vector."""
    statistics = [outcome.statistics[name].flatten() for name in sorted(outcome.statistics)]
    parts = [*gradients, outcome.losses, outcome.accuracies, *statistics]
    return torch.cat([part.reshape(-1).to(outcome.losses.dtype) for part in parts])


def _mean(results: Iterator[_Result]) -> Gradient:
    """Return the mean over tasks, summed in their order as they come in: memory does not grow with their number."""
    sums, first = next(results)
    outcomes = [first]
    for gradients, outcome in results:
        sums = tuple(total + gradient for total, gradient in zip(sums, gradients, strict=True))
        outcomes.append(outcome)
    losses = torch.cat([outcome.losses for outcome in outcomes])
    accuracies = torch.cat([outcome.accuracies for outcome in outcomes])
    return Gradient(
        gradients=tuple(total / len(losses) for total in sums),
        loss=losses.mean().item(),
        accuracy=accuracies.mean().item(),
        statistics={name: torch.cat([outcome.statistics[name] for outcome in outcomes]) for name in first.statistics},
    )
