"""What a training learns from, where its steps want it: episodes drawn ahead, or plain examples, on the device."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.prefetch import Prefetch
from metalearn_core.data.sampler import ExampleSampler
from metalearn_core.data.tasks import stream_of
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.step_graph import HeldTensors

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Stream, Tasks


class Supply:
    """The training split as streams.

    Args:
        dataset: whose training split it is.
        plan: of the training: its seed.
        shape: of the training episodes; None: the learner trains on plain examples.
        batch_size: of plain examples, where the learner, or its pretraining, takes any.
        device: that steps run on.
    """

    def __init__(
        self,
        dataset: "Tasks",
        plan: TrainingPlan,
        shape: EpisodeShape | None,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        place = dataset.place_for(device)
        self._device, self._held = device, HeldTensors()
        self._episodes: Stream | None = None
        self._examples: ExampleSampler | None = None
        if shape is not None:
            within = plan.train_within_domain
            self._episodes = stream_of(dataset, "train", shape, seed=plan.seed, within_domain=within, device=place)
        if batch_size is not None:
            assert isinstance(dataset, EpisodeDataset)
            self._examples = ExampleSampler(dataset, "train", seed=plan.seed, batch_size=batch_size, device=place)
        self._ahead_episodes, self._ahead_examples = Prefetch(self._draw_episodes), Prefetch(self._draw_examples)
        self._worth_drawing_ahead = dataset.mapped or place != device

    @contextlib.contextmanager
    def drawing_ahead(self) -> Iterator[None]:
        """Draw in the background inside the block, where what is drawn has a way to go."""
        with contextlib.ExitStack() as stack:
            if self._worth_drawing_ahead:
                stack.enter_context(self._ahead_episodes)
                stack.enter_context(self._ahead_examples)
            yield

    def examples(self, number: int, *, held: bool) -> tuple[Tensor, Tensor]:
        """Return batch `number` of plain examples: x (n, *x) and y (n,).

        Args:
            number: from 0.
            held: in the tensors of the first batch of these shapes, as a recorded step reads them.
        """
        x, y = (values.to(self._device) for values in self._ahead_examples(number, 1))
        if held:
            x, y = self._held(x, y)
        return x, y

    def episodes(self, wanted: range, ahead: range, *, held: bool) -> EpisodeBatch:
        """Return episodes of the stream.

        Args:
            wanted: their numbers.
            ahead: those of the episodes that will be asked for next.
            held: as for `examples`.
        """
        batch = self._ahead_episodes(wanted.start, len(wanted), (ahead.start, len(ahead))).to(self._device)
        if not held:
            return batch
        tensors = batch.tensors()
        return batch.with_tensors(dict(zip(tensors, self._held(*tensors.values()), strict=True)))

    def _draw_episodes(self, first: int, count: int) -> EpisodeBatch:
        assert self._episodes is not None
        return self._episodes.batch(first, count)

    def _draw_examples(self, number: int, _: int) -> tuple[Tensor, Tensor]:
        assert self._examples is not None
        return self._examples.batch(number)
