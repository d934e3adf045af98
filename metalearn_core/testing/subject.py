"""The learner that is looked at, and what it is looked at with: small learners, episodes and a dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest
from metalearn_core.errors import UsageError
from metalearn_core.learners import LEARNERS, LearnerSpec, make_learner, register
from metalearn_core.learners.contract import ExampleLearner, Learner, LearnerInfo, Outcome

WAY, SHOT, QUERY = 4, 2, 3
EXAMPLES_A_CLASS = 20
SPLITS: dict[Literal["train", "validation", "test"], int] = {"train": 7, "validation": 4, "test": 4}
TARGET_SIZE = 2
SHAPES: dict[str, tuple[int, ...]] = {"image": (1, 16, 16), "vector": (6,)}
_CONV4 = {"width": 8, "blocks": 3}
_NOISE, _STATISTICS_NOISE = 0.2, 0.3


@dataclass(frozen=True)
class Subject:
    """A learner's class with one kind of examples and targets that it says it takes.

    Attributes:
        kind: the class.
        modality: of the examples: `image` or `vector`.
        target: `class` or `real`.
        options, backbone_options: that differ from the defaults (and from a small conv4).
        overfit_steps, learns_from: see `conformance_checks`.
        backbone: of vectors.
    """

    kind: type[Learner]
    modality: Literal["image", "vector"]
    target: Literal["class", "real"]
    options: dict[str, Any]
    backbone_options: dict[str, Any]
    overfit_steps: int | None = None
    learns_from: Literal["queries", "support"] = "queries"
    backbone: str = "mlp"

    def __str__(self) -> str:
        kind = self.modality if self.backbone == "mlp" else self.backbone
        return f"{self.info.name}-{kind}-{self.target}"

    @property
    def info(self) -> LearnerInfo:
        """What the learner declares."""
        return self.kind.info

    @property
    def way(self) -> int:
        """Classes of an episode; for regression 1."""
        return WAY if self.target == "class" else 1

    @property
    def trains_on_episodes(self) -> bool:
        """Whether it trains on episodes, not on plain examples."""
        return self.info.stream == "episodes"

    @property
    def spec(self) -> LearnerSpec:
        """The learner in small, as a run has it."""
        if self.modality == "image":
            small = {**_CONV4, **self.backbone_options}
            return LearnerSpec(learner=self.info.name, options=self.options, backbone_options=small)
        return LearnerSpec(learner=self.info.name, options=self.options, backbone=self.backbone)

    @property
    def is_refused(self) -> bool:
        """Whether the learner says, by a UsageError, that it cannot be made for this."""
        try:
            with self.registered():
                self.make()
        except UsageError:
            return True
        except Exception:  # the checks tell what it is
            return False
        return False

    @contextmanager
    def registered(self) -> Iterator[None]:
        """Have the learner known by its name, as code that makes learners from descriptions needs it."""
        known = self.info.name in LEARNERS
        register(self.kind)
        try:
            yield
        finally:
            if not known:
                del LEARNERS[self.info.name]

    def make(
        self, *, seed: int = 0, dtype: torch.dtype = torch.float64, randomise: bool = True, **options: Any
    ) -> Learner:
        """Return the learner in evaluation mode, with noise on all weights and running averages where asked.

        Noise, so that nothing hides behind what starts at zero or one; a fifth of a weight's size, so that a learned
        step size stays one.
        """
        spec = self.spec.model_copy(update={"options": {**self.options, **options}})
        learner = make_learner(spec, dataset_spec(self.modality, self.target), way=self.way, seed=seed, dtype=dtype)
        if randomise:
            generator = torch.Generator().manual_seed(seed + 1)
            with torch.no_grad():
                for parameter in learner.parameters():
                    size = parameter.square().mean().sqrt().item() or 1.0
                    parameter.add_(_NOISE * size * torch.randn(parameter.shape, generator=generator, dtype=dtype))
                for average in learner.running_averages().values():
                    average.add_(_STATISTICS_NOISE * torch.rand(average.shape, generator=generator, dtype=dtype))
        return learner.eval()

    def episodes(
        self,
        count: int = 3,
        *,
        way: int = WAY,
        shot: int = SHOT,
        query: int = QUERY,
        noise: float = 0.3,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> EpisodeBatch:
        """Return random episodes: classes differ in their mean; real targets are a function of their episode's own."""
        generator = torch.Generator().manual_seed(seed)
        shape = SHAPES[self.modality]
        centres = torch.rand(count, way, 1, *shape, generator=generator, dtype=torch.float64)
        x = centres + noise * torch.rand(count, way, shot + query, *shape, generator=generator, dtype=torch.float64)
        if self.target == "class":
            y = torch.arange(way).view(1, way, 1).expand(count, way, shot + query)
        else:
            slope = torch.randn(count, prod(shape), TARGET_SIZE, generator=generator, dtype=torch.float64)
            y = torch.tanh((x - x.mean()).flatten(3) @ slope.unsqueeze(1)).to(dtype)
        order = torch.randperm(way * shot, generator=generator)
        return EpisodeBatch(
            way=way if self.target == "class" else 1,
            support_x=x[:, :, :shot].flatten(1, 2)[:, order].to(dtype),
            support_y=y[:, :, :shot].flatten(1, 2)[:, order],
            query_x=x[:, :, shot:].flatten(1, 2).to(dtype),
            query_y=y[:, :, shot:].flatten(1, 2),
        )


def dataset_spec(modality: Literal["image", "vector"], target: str) -> DatasetSpec:
    """Return what a learner is told of the examples; of a dataset's bytes too."""
    channels = SHAPES[modality][0]
    return DatasetSpec(
        modality=modality,
        example_shape=SHAPES[modality],
        dtype="uint8" if modality == "image" else "float32",
        mean=(0.5,) * channels,
        std=(0.3,) * channels,
        train_classes=SPLITS["train"],
        target_size=TARGET_SIZE if target == "real" else None,
    )


def train(learner: Learner, episodes: EpisodeBatch) -> Outcome:
    """Return what training on episodes gives, or on their queries as plain examples of the training classes."""
    if not isinstance(learner, ExampleLearner):
        return learner.train_episodes(episodes)
    x = episodes.query_x.flatten(0, 1)
    return learner.train_examples(x, torch.arange(len(x), device=x.device) % learner.spec.train_classes)


def gradients(learner: Learner, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss with respect to every parameter: zeros where it does not depend on it."""
    named = dict(learner.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def small_dataset(modality: Literal["image", "vector"]) -> EpisodeDataset:
    """Return an episode dataset in memory: a class is a fixed random example, its examples that with noise."""
    generator = torch.Generator().manual_seed(0)
    entries: list[ClassEntry] = []
    examples = []
    for split, classes in SPLITS.items():
        for number in range(classes):
            entries.append(
                ClassEntry(
                    id=len(entries),
                    name=f"{split}{number}",
                    domain="one",
                    split=split,
                    count=EXAMPLES_A_CLASS,
                    shard=0,
                    row_group=number,
                    rotations=(0,),
                    digest=f"{split}{number}",
                )
            )
            centre = torch.rand(1, *SHAPES[modality], generator=generator)
            noise = torch.rand(EXAMPLES_A_CLASS, *SHAPES[modality], generator=generator)
            examples.append((centre + 0.3 * noise) / 1.3)
    values = torch.cat(examples)
    manifest = Manifest(
        digest="conformance".ljust(32, "0"),
        source="memory",
        spec=dataset_spec(modality, "class"),
        options=BuildOptions(),
        classes=tuple(entries),
        shards=(),
    )
    return EpisodeDataset(
        Path("conformance"), manifest, (values * 255).to(torch.uint8) if modality == "image" else values
    )
