"""What every learner is: two pure methods, batched over episodes, around a backbone."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Statistics
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
        targets: that it learns: classes, and real numbers (regression) where it can.
        variable_shape: it takes episodes whose way and shot vary, by masks.
        stream: what it trains on: episodes, or plain examples with the labels of the training classes.
        transductive: it has a transductive mode at all.
    """

    name: str
    family: Family
    paper: str
    fixed_way: bool
    order_invariant: bool = True
    modalities: tuple[str, ...] = ("image", "vector")
    targets: tuple[Literal["class", "real"], ...] = ("class",)
    variable_shape: bool = True
    stream: Literal["episodes", "examples"] = "episodes"
    transductive: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one pass over b training episodes (or over a batch of plain examples: b = 1) gave.

    Attributes:
        losses: (b,) outer losses, differentiable.
        accuracies: (b,) shares of the queries that were classified right; for regression minus the squared errors.
        statistics: batch-norm statistics of each episode, each (b, channels), for the backbone's running averages;
            empty where the learner has no use for those.
    """

    losses: Tensor
    accuracies: Tensor
    statistics: Statistics = field(default_factory=dict)


class LearnerConfig(BaseModel):
    """The options that every learner has; each learner's own `Config` adds to them and sets its recipe's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["adam", "sgd"] = Field("adam", description="the outer optimiser")
    learning_rate: float = Field(1e-3, gt=0, description="of the outer optimiser at the start")
    schedule: Literal["cosine", "constant", "linear", "halving"] = Field(
        "cosine", description="of the learning rate over the training budget; cosine and linear end at zero"
    )
    halvings: int = Field(10, ge=1, description="schedule halving: so often over the training budget")
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

    Attributes:
        info: what the learner declares.
        backbone_defaults: options of backbones, by backbone, in which the learner's recipe differs from their defaults.
        batch_norm: the mode that `adapt` and `predict` work in; may be set to evaluate in the other one.
        progress: the share (0 to 1) of the training budget that is spent, set before each outer step.

    Raises:
        UsageError: the learner takes no examples of this modality or no such targets, has no such batch-norm mode, or
            its way is missing.
    """

    info: ClassVar[LearnerInfo]
    Config: ClassVar[type[LearnerConfig]]
    backbone_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    mean: Tensor
    std: Tensor
    progress: float = 0.0

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: LearnerConfig, way: int | None = None) -> None:
        super().__init__()
        target = "class" if spec.target_size is None else "real"
        if target not in self.info.targets:
            wanted = {"class": "classifies, it has no real targets", "real": "is for regression, it has no classes"}
            raise UsageError(f"{self.info.name} {wanted[self.info.targets[0]]}, got targets of kind {target!r}")
        if spec.modality not in self.info.modalities:
            raise UsageError(
                f"{self.info.name} takes {' or '.join(self.info.modalities)} examples, got {spec.modality}"
            )
        if self.info.fixed_way and way is None:
            raise UsageError(f"{self.info.name} is built for a fixed number of classes: give its way")
        if config.batch_norm == "transductive" and not self.info.transductive:
            raise UsageError(f"{self.info.name}.batch_norm: got 'transductive', {self.info.name} is always inductive")
        self.spec, self.backbone, self.config, self.way = spec, backbone, config, way
        self.batch_norm: BatchNormMode = config.batch_norm
        dtype = next(backbone.parameters()).dtype
        broadcast = (-1,) + (1,) * (len(spec.example_shape) - 1)
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=dtype).reshape(broadcast), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=dtype).reshape(broadcast), persistent=False)

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the shape of training episodes that the recipe wants for evaluation episodes of `shape`.

        Where the dataset has fewer classes or examples than a recipe wants, the caller shrinks it (fixed way: never).
        """
        del config
        return shape

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return how many training episodes a thread of a processor takes at once, at most, to be quickest.

        One, where an episode is large enough to keep a processor busy.
        """
        del shape
        return 1

    @abstractmethod
    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Use the support sets of b episodes, independently of one another.

        Args:
            support_x: (b, s, *x) examples, uint8 or floating.
            support_y: (b, s) int64 labels in 0 … way − 1; for regression (b, s, d) floats.
            way: classes an episode; for regression 1.
            support_mask: (b, s) bool, False where padded.

        Returns:
            tensors alone, each with b as its first dimension: what the support sets taught.
        """

    @abstractmethod
    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Return logits (b, q, way) for query_x (b, q, *x); −inf for a class without support.

        For regression: the means (b, q, d) of the targets.
        """

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Adapt, then predict: logits (b, q, way)."""
        state = self.adapt(episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.predict(state, episodes.query_x, episodes.query_mask)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses of b training episodes: the mean over the unmasked queries of each.

        A query's loss is the cross-entropy, or for regression the squared error, averaged over the target's numbers.
        """
        return query_outcome(self(episodes), episodes)

    def stage(self) -> Hashable:
        """Return what a training step computes by, beside weights and examples: what changes with `progress`, if any.

        On a GPU a step is recorded, and recorded anew for each stage: let there be few.
        """
        return None

    def standardise(self, x: Tensor) -> Tensor:
        """Return examples (…, *x) as floats, by mean and std of the training split; uint8 is divided by 255 first."""
        values = x if x.is_floating_point() else x.to(self.mean.dtype) / 255
        return (values - self.mean) / self.std


def query_outcome(logits: Tensor, episodes: EpisodeBatch, statistics: Statistics | None = None) -> Outcome:
    """Return mean loss and accuracy over the unmasked queries of each episode.

    Of logits (b, q, way) and labels (b, q) the loss is the cross-entropy. Of means and real targets (b, q, d) it is the
    squared error, and minus that stands for the accuracy.
    """
    labels = episodes.query_y
    if labels.is_floating_point():
        losses = (logits - labels).square().mean(dim=-1)
        correct = -losses.detach()
    else:
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        correct = (logits.detach().argmax(dim=-1) == labels).to(losses.dtype)
    if episodes.query_mask is None:
        return Outcome(losses.mean(dim=1), correct.mean(dim=1), statistics or {})
    mask = episodes.query_mask.to(losses.dtype)
    count = mask.sum(dim=1)
    losses = torch.where(episodes.query_mask, losses, 0.0)
    return Outcome(losses.sum(dim=1) / count, (correct * mask).sum(dim=1) / count, statistics or {})


def membership(labels: Tensor, way: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return one-hot rows (b, s, way) of labels (b, s), zero where masked out."""
    rows = F.one_hot(labels, way).to(dtype)
    return rows if mask is None else rows * mask.unsqueeze(-1)


class EmbeddingLearner(Learner):
    """A learner that embeds each example on its own when inductive, so that an image need be embedded only once."""

    @abstractmethod
    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Like `adapt`, from support features (b, s, d)."""

    @abstractmethod
    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Like `predict`, from query features (b, q, d)."""

    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Embed the support sets, then adapt to their features."""
        return self.adapt_features(
            self._embed_episodes(support_x, support_mask), support_y, way=way, support_mask=support_mask
        )

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Embed the queries, then predict from their features."""
        return self.predict_features(state, self._embed_episodes(query_x, query_mask))

    def _embed_episodes(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x) in the batch-norm mode that is set; zeros where masked out."""
        if self.batch_norm == "inductive":
            features = self.embed(x.flatten(0, 1)).view(*x.shape[:2], -1)
            return features if mask is None else torch.where(mask.unsqueeze(-1), features, 0.0)
        return self.embed_by_episode(x, mask)[0]

    def embed_by_episode(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Embed each episode's examples under their own batch-norm statistics.

        Args:
            x: (b, n, *x).
            mask: (b, n) bool; what is masked out has no part in the statistics, and features of zero.

        Returns:
            features (b, n, d), and the statistics, each (b, channels).
        """
        weights = dict(self.backbone.named_parameters())
        if mask is None:
            features, statistics = self.backbone.embed(weights, self.standardise(x))
            return features.to(self.mean.dtype), statistics
        rows, parts = [], []
        for values, keep in zip(x, mask, strict=True):
            kept, statistics = self.embed_by_episode(values[keep].unsqueeze(0))
            rows.append(kept.new_zeros(len(keep), kept.shape[-1]).masked_scatter(keep.unsqueeze(-1), kept[0]))
            parts.append(statistics)
        return torch.stack(rows), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def embed(self, x: Tensor) -> Tensor:
        """Return features (n, d) of examples (n, *x), each by itself, under the running batch-norm statistics."""
        weights, running = dict(self.backbone.named_parameters()), self.backbone.running_statistics()
        features, _ = self.backbone.embed(weights, self.standardise(x).unsqueeze(0), running)
        return features[0].to(self.mean.dtype)


class ExampleLearner(EmbeddingLearner):
    """A learner that is trained on plain examples with the labels of the training classes."""

    @abstractmethod
    def train_examples(self, x: Tensor, y: Tensor) -> Outcome:
        """Return the outcome (b = 1) of examples x (n, *x) with labels y (n,) among the training classes."""
