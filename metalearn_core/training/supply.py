"""What a training learns from, where its steps want it: episodes drawn ahead, or plain examples, on the device."""

import contextlib
from typing import TYPE_CHECKING, Any

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
        self._prefetch = Prefetch(self._draw)
        self._worth_drawing_ahead = dataset.mapped or place != device

    def drawing_ahead(self) -> contextlib.AbstractContextManager[Any]:
        """Return a block in which episodes are drawn in the background, where they have a way to go."""
        return self._prefetch if self._worth_drawing_ahead else contextlib.nullcontext()

    def examples(self, number: int, *, held: bool) -> tuple[Tensor, Tensor]:
        """Return batch `number` of plain examples: x (n, *x) and y (n,).

        Args:
            number: from 0.
            held: in the tensors of the first batch of these shapes, as a recorded step reads them.
        """
        assert self._examples is not None
        x, y = (values.to(self._device) for values in self._examples.batch(number))
        if held:
            x, y = self._held(x, y)
        return x, y

    def episodes(self, first: int, count: int, *, held: bool) -> EpisodeBatch:
        """Return the episodes first … first + count − 1 of the stream; `held` as for `examples`."""
        batch = self._prefetch(first, count).to(self._device)
        if not held:
            return batch
        tensors = batch.tensors()
        return batch.with_tensors(dict(zip(tensors, self._held(*tensors.values()), strict=True)))

    def _draw(self, first: int, count: int) -> EpisodeBatch:
        assert self._episodes is not None
        return self._episodes.batch(first, count)
