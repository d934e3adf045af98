"""What episodes are drawn from, whatever it is: an episode dataset with classes, or a distribution of regressions."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from metalearn_core.data.manifest import Split, read_manifest
from metalearn_core.data.shape import EpisodeShape

if TYPE_CHECKING:
    import torch

    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.sampler import EpisodeSampler
    from metalearn_core.data.sinusoid import SinusoidSampler, SinusoidTasks

SINUSOID = "sinusoid"
SINUSOID_POINTS = 10
"""To adapt to, and to predict, where no other number is asked for (Finn, Abbeel, Levine 2017, section 5.1)."""
Tasks: TypeAlias = "EpisodeDataset | SinusoidTasks"
Stream: TypeAlias = "EpisodeSampler | SinusoidSampler"


def open_tasks(location: str | Path) -> "Tasks":
    """Return what episodes at a location are drawn from: `sinusoid`, or an episode dataset's folder or address.

    Raises:
        MetalearnError: what `EpisodeDataset.open` raises.
    """
    if str(location) == SINUSOID:
        from metalearn_core.data.sinusoid import SinusoidTasks

        return SinusoidTasks()
    from metalearn_core.data.dataset import EpisodeDataset

    return EpisodeDataset.open(location)


def tasks_digest(location: str) -> str:
    """Return the digest of what is at a location, without opening more of it than it takes."""
    return open_tasks(location).digest if location == SINUSOID else read_manifest(location).digest


def stream_of(
    tasks: "Tasks",
    split: Split,
    shape: EpisodeShape,
    *,
    seed: int,
    within_domain: bool = False,
    device: "str | torch.device" = "cpu",
) -> "Stream":
    """Return the stream of episodes of a shape.

    Raises:
        UsageError: the shape does not fit what there is.
    """
    from metalearn_core.data.sampler import EpisodeSampler
    from metalearn_core.data.sinusoid import SinusoidSampler, SinusoidTasks
    from metalearn_core.errors import UsageError

    if isinstance(tasks, SinusoidTasks):
        if within_domain:
            raise UsageError(f"train_within_domain: {SINUSOID} has no domains")
        return SinusoidSampler(tasks, split, shape, seed=seed, device=device)
    return EpisodeSampler(tasks, split, shape, seed=seed, within_domain=within_domain, device=device)
