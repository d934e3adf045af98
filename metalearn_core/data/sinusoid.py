"""Sinusoids to be regressed from a few points: a distribution of tasks, where a dataset has examples and classes."""

import math

import torch
from torch import Tensor

from metalearn_core.data.counter import shift_right, stream_key, words
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec, Split
from metalearn_core.data.tasks import SINUSOID
from metalearn_core.errors import UsageError
from metalearn_core.storage import text_digest

AMPLITUDE, PHASE, DOMAIN = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)


class SinusoidTasks:
    """The sinusoids of Finn, Abbeel, Levine 2017, section 5.1: y = A sin(x − φ), A ~ U[0.1, 5], φ ~ U[0, π].

    Points are drawn from U[−5, 5], without noise, and reach a learner as they are: mean 0 and standard deviation 1
    stand in its description, so that the paper's learning rates mean here what they mean there.
    """

    spec = DatasetSpec(
        modality="vector", example_shape=(1,), dtype="float32", mean=(0.0,), std=(1.0,), train_classes=0, target_size=1
    )
    mapped = False

    @property
    def digest(self) -> str:
        """The name of the distribution: 32 hexadecimal digits over what it is."""
        return text_digest({"tasks": SINUSOID, "amplitude": AMPLITUDE, "phase": PHASE, "domain": DOMAIN})[:32]

    def place_for(self, device: torch.device) -> torch.device:
        """Return where to draw episodes for work on a device: there."""
        return device


class SinusoidSampler:
    """Sinusoids with their points; episode i depends on the split, shape, seed and i alone.

    The splits are independent streams of one distribution. Values agree between devices to 1e-6.

    Args:
        tasks: the distribution.
        split: whose stream.
        shape: of the episodes: way 1, `shot` points to adapt to and `query` points to predict.
        seed: of the stream.
        device: where the points are computed.

    Raises:
        UsageError: way is not 1, or the shape varies.
    """

    def __init__(
        self,
        tasks: SinusoidTasks,
        split: Split,
        shape: EpisodeShape,
        *,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> None:
        if shape.way != 1 or shape.varied:
            raise UsageError(f"{SINUSOID} is regression: it has way 1 and a single number of shots, got {shape}")
        self.tasks, self.split, self.shape, self.device = tasks, split, shape, torch.device(device)
        self.key = stream_key("sinusoids", tasks.digest, split, [shape.shot, shape.query], seed)

    def curves(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the amplitudes and phases (count,) of the episodes from number `first` on, in fp64."""
        uniform = self._uniform(first, count, 2)
        return _between(uniform[:, 0], AMPLITUDE), _between(uniform[:, 1], PHASE)

    def batch(self, first: int, count: int) -> EpisodeBatch:
        """Return the episodes number first … first + count − 1: x (count, n, 1) and y (count, n, 1) in fp32."""
        amplitude, phase = (value.view(-1, 1, 1) for value in self.curves(first, count))
        x = _between(self._uniform(first, count, 2 + self.shape.shot + self.shape.query)[:, 2:], DOMAIN).unsqueeze(-1)
        y = amplitude * torch.sin(x - phase)
        x, y, shot = x.float(), y.float(), self.shape.shot
        parts = x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:]
        return EpisodeBatch(1, *(part.contiguous() for part in parts))

    def _uniform(self, first: int, count: int, each: int) -> Tensor:
        """Return (count, each) numbers of fp64 in [0, 1): the first words of each episode."""
        episode = words(self.key, torch.arange(first, first + count, device=self.device))
        word = words(episode.unsqueeze(1), torch.arange(each, device=self.device))
        return shift_right(word, 11).double() * 2.0**-53


def _between(uniform: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * uniform
