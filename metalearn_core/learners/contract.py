"""What every learner is: two pure methods, batched over episodes, around a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError

Family = Literal["metric", "optimization", "model", "memory", "transfer"]
BatchNormMode = Literal["inductive", "transductive"]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class LearnerInfo:
    """What a learner declares of itself.

    Attributes:
        name: by which it is asked for.
        family: one of the field's families.
        paper: authors, year, title: where its equations come from.
        fixed_way: it is built for one number of classes; otherwise it takes any.
        order_invariant: its logits do not depend on the order of the support set (but for rounding).
        modalities: of the examples that it takes.
        stream: what it trains on: episodes, or plain examples with the labels of the training classes.
        transductive: it has a transductive mode at all.
    """

    name: str
    family: Family
    paper: str
    fixed_way: bool
    order_invariant: bool = True
    modalities: tuple[str, ...] = ("image", "vector")
    stream: Literal["episodes", "examples"] = "episodes"
    transductive: bool = False


class LearnerConfig(BaseModel):
    """The options that every learner has; each learner's own `Config` adds to them and sets its recipe's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(1e-3, gt=0, description="of the outer optimiser (Adam) at the start")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="of the learning rate over the training budget; cosine ends at zero"
    )
    meta_batch: int = Field(1, ge=1, description="episodes an outer step (for plain examples: see batch_size)")
    weight_decay: float = Field(0.0, ge=0, description="decoupled (AdamW)")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the outer gradient")
    batch_norm: BatchNormMode = Field(
        "inductive", description="inductive: a query's logits do not depend on the other queries; transductive: they do"
    )


class Learner(nn.Module, ABC):
    """A meta-learning algorithm around a backbone.

    Args:
        spec: of the dataset that it learns from; examples are standardised by its mean and std.
        backbone: embeds examples.
        config: of the learner's own `Config` type.
        way: classes an episode; needed where `info.fixed_way`, else None.

    Raises:
        UsageError: the learner takes no examples of this modality, or its way is missing.
    """

    info: ClassVar[LearnerInfo]
    Config: ClassVar[type[LearnerConfig]]
    mean: Tensor
    std: Tensor

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: LearnerConfig, way: int | None = None) -> None:
        super().__init__()
        if spec.modality not in self.info.modalities:
            raise UsageError(f"{self.info.name} takes {' or '.join(self.info.modalities)} examples, got {spec.modality}")
        if self.info.fixed_way and way is None:
            raise UsageError(f"{self.info.name} is built for a fixed number of classes: give its way")
        self.spec, self.backbone, self.config, self.way = spec, backbone, config, way
        self.batch_norm: BatchNormMode = config.batch_norm
        broadcast = (-1,) + (1,) * (len(spec.example_shape) - 1)
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(broadcast), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).reshape(broadcast), persistent=False)

    @classmethod
    def train_shape(cls, shape: EpisodeShape) -> EpisodeShape:
        """Return the shape of training episodes that the recipe wants for evaluation episodes of `shape`.

        Where the dataset has fewer classes or examples than a recipe wants, the caller shrinks it (fixed way: never).
        """
        return shape

    @abstractmethod
    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Use the support sets of b episodes, independently of one another.

        Args:
            support_x: (b, s, *x) examples, uint8 or floating.
            support_y: (b, s) int64 labels in 0 … way − 1.
            way: classes an episode.
            support_mask: (b, s) bool, False where padded.

        Returns:
            tensors alone, each with b as its first dimension: what the support sets taught.
        """

    @abstractmethod
    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Return logits (b, q, way) for query_x (b, q, *x); −inf for a class without support."""

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Adapt, then predict: logits (b, q, way)."""
        state = self.adapt(episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.predict(state, episodes.query_x, episodes.query_mask)

    def episode_losses(self, episodes: EpisodeBatch) -> Tensor:
        """Return the outer loss of each episode (b,): the mean cross-entropy over its unmasked queries."""
        logits = self(episodes)
        losses = F.cross_entropy(logits.flatten(0, 1), episodes.query_y.flatten(), reduction="none")
        losses = losses.view_as(episodes.query_y)
        if episodes.query_mask is None:
            return losses.mean(dim=1)
        return (losses * episodes.query_mask).sum(dim=1) / episodes.query_mask.sum(dim=1)

    def standardise(self, x: Tensor) -> Tensor:
        """Return examples (…, *x) as floats, by the mean and std of the training split; uint8 is divided by 255 first."""
        values = x if x.is_floating_point() else x.to(self.mean.dtype) / 255
        return (values - self.mean) / self.std


class EmbeddingLearner(Learner):
    """A learner that embeds each example on its own when inductive, so that an image need be embedded only once."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return features (n, d) of examples (n, *x), each independent of the others (running batch-norm statistics)."""

    @abstractmethod
    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Like `adapt`, from support features (b, s, d)."""

    @abstractmethod
    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Like `predict`, from query features (b, q, d)."""
