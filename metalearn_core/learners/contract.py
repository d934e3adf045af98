"""What every learner is: two pure methods, batched over episodes, around a backbone."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

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
EMBEDDED_AT_ONCE = 256
"""Examples, where no gradient is asked for, so that memory does not grow with a support set."""
REMEMBERED_AT_ONCE = 2_600_000
"""Numbers, that the episodes which a thread takes at once may remember together: 10 MB in fp32."""
BACKBONE, HEAD, STATISTICS = "backbone.", "head.", "statistics."
"""What names in a state begin with: of the weights of backbone and linear head, and of the backbone's statistics."""


@dataclass(frozen=True)
class LearnerInfo:
    """What a learner declares of itself.

    Attributes:
        name: by which it is asked for.
        family: one of the field's families.
        paper: authors, year, title: where its equations come from.
        fixed_way: it is built for one number of classes; otherwise it takes any.
        order_invariant: its logits do not depend on the order of the support set (but for rounding).
        label_equivariant: renumbering the classes of an episode renumbers its logits, and nothing else; where it is not
            said, so for learners of any way. A head of fixed way that was meta-learned prefers some columns.
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
    label_equivariant: bool | None = None

    def __post_init__(self) -> None:
        if self.label_equivariant is None:
            object.__setattr__(self, "label_equivariant", not self.fixed_way)


@dataclass(frozen=True)
class Outcome:
    """What one pass over b training episodes (or over a batch of plain examples: b = 1) gave.

    Attributes:
        losses: (b,) outer losses, differentiable.
        accuracies: (b,) shares of the queries that were classified right; for regression minus the squared errors.
        statistics: batch-norm statistics of each episode, each (b, channels), for the learner's running averages;
            empty where it has no use for those.
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


def require_shape(info: LearnerInfo, shape: EpisodeShape) -> None:
    """Raise a UsageError where a learner cannot take episodes whose way or shot varies as in this shape."""
    if shape.min_way is not None and info.fixed_way:
        raise UsageError(
            f"way {shape.spans['way']}: {info.name} is built for one number of classes: give a single way, or take a "
            "learner of any way, such as protonet"
        )
    if shape.varied and not info.variable_shape:
        raise UsageError(
            f"{shape}: {info.name} takes no episodes whose way or shot varies: give single numbers, or take a learner "
            "that does, such as protonet"
        )


class Learner(nn.Module, ABC):
    """A meta-learning algorithm around a backbone.

    Args:
        spec: of the dataset that it learns from; examples are standardised by its mean and std.
        backbone: embeds examples.
        config: of the learner's own `Config` type.
        way: classes per episode; needed where `info.fixed_way`, else None.

    Attributes:
        info: what the learner declares.
        backbone_defaults: options of backbones, by backbone, in which the learner's recipe differs from their defaults.
        batch_norm: the mode that `adapt` and `predict` work in; may be set to evaluate in the other one.
        progress: the share (0 to 1) of the training budget that is spent, set before each outer step.
        moves_backbone: adapting takes gradient steps on the backbone, and holds what it remembers of all examples.

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
    moves_backbone: ClassVar[bool] = True

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: LearnerConfig, way: int | None = None) -> None:
        super().__init__()
        self.check_spec(spec)
        if self.info.fixed_way and way is None:
            raise UsageError(f"{self.info.name} is built for a fixed number of classes: give its way")
        if config.batch_norm == "transductive" and not self.info.transductive:
            raise UsageError(f"{self.info.name}.batch_norm: got 'transductive', {self.info.name} is always inductive")
        self.spec, self.backbone, self.config, self.way = spec, backbone, config, way
        self.batch_norm: BatchNormMode = config.batch_norm
        dtype = next((parameter.dtype for parameter in backbone.parameters()), torch.get_default_dtype())
        broadcast = (-1,) + (1,) * (len(spec.example_shape) - 1)
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=dtype).reshape(broadcast), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=dtype).reshape(broadcast), persistent=False)

    @classmethod
    def check_spec(cls, spec: DatasetSpec) -> None:
        """Raise a UsageError where the learner cannot learn from such a dataset, whatever its backbone."""
        target = "class" if spec.target_size is None else "real"
        if target not in cls.info.targets:
            wanted = {"class": "classifies, it has no real targets", "real": "is for regression, it has no classes"}
            raise UsageError(f"{cls.info.name} {wanted[cls.info.targets[0]]}, got targets of kind {target!r}")
        if spec.modality not in cls.info.modalities:
            raise UsageError(f"{cls.info.name} takes {' or '.join(cls.info.modalities)} examples, got {spec.modality}")

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the shape of training episodes that the recipe wants for evaluation episodes of `shape`.

        Here that of evaluation, but for what the options `train_way` and `train_query` say, where a learner has them. A
        way or shot that is passed on keeps its range. Where the dataset has fewer classes or examples than a recipe
        wants, the caller shrinks it (fixed way: never).
        """
        way, query = (getattr(config, name, None) for name in ("train_way", "train_query"))
        if way is not None:
            shape = replace(shape, way=way, min_way=None)
        return shape if query is None else replace(shape, query=query)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return how many training episodes a thread of a processor takes at once, at most, to be quickest.

        One, where an episode keeps a processor busy; of small ones so many that what a pass over them remembers fits.
        """
        if not self.backbone.groups_together:
            return 1
        examples = shape.way * (shape.shot + shape.query)
        return max(1, REMEMBERED_AT_ONCE // (examples * max(1, self.backbone.remembered)))

    @abstractmethod
    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Use the support sets of b episodes, independently of one another.

        Args:
            support_x: (b, s, *x) examples, uint8 or floating.
            support_y: (b, s) int64 labels in 0 … way − 1; for regression (b, s, d) floats.
            way: classes per episode; for regression 1.
            support_mask: (b, s) bool, False where padded.

        Returns:
            tensors alone, each with b as its first dimension: what the support sets taught. A fast weight has the name
            of its parameter (those of a linear head are `head.weight` and `head.bias`, even where they are made anew),
            the batch-norm statistics that belong to it `statistics.` and theirs, and the representatives of classes
            (b, way, d) are `prototypes`: by these names a prediction is explained.
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

    def compared_features(self, state: State, x: Tensor) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x) in the space where, after adapting, near examples are alike.

        Here that of the backbone under the fast weights and statistics of the state; where it has none, under the
        shared ones: an empty state is that of a learner which has seen no support set. A learner that does not compare
        by Euclidean distance maps its features to where it is the same (for the cosine: to unit length).
        """
        weights = {name: state.get(BACKBONE + name, parameter) for name, parameter in self.backbone.named_parameters()}
        statistics = own_statistics(state) or self.backbone.running_statistics()
        features, _ = self.backbone.embed(weights, self.standardise(x), statistics)
        return features.to(self.mean.dtype)

    def with_eval_steps(self, steps: int) -> Self:
        """Return the learner, which has the option `eval_steps`, with so many (0: none); the weights are shared."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"eval_steps": steps})
        return other

    def unmoved(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Return the weights as they are where no support set moves them: what is moved is measured from there.

        They have the names that they have in a state, and b as their first dimension, or 1 where all episodes have the
        same. Here the parameters, and over them what `adapt` starts from where it takes `eval_steps`.

        Args:
            support_x, support_y, way, support_mask: as `adapt` takes them.
        """
        weights: dict[str, Tensor] = {name: value.unsqueeze(0) for name, value in self.named_parameters()}
        if hasattr(self.config, "eval_steps"):
            start = self.with_eval_steps(0).adapt(support_x, support_y, way=way, support_mask=support_mask)
            weights |= {name: value for name, value in start.items() if name in weights or name.startswith(HEAD)}
        return weights

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses of b training episodes: the mean over the unmasked queries of each.

        A query's loss is the cross-entropy, or for regression the squared error, averaged over the target's numbers.
        """
        return query_outcome(self(episodes), episodes)

    def running_averages(self) -> dict[str, Tensor]:
        """Return the buffers (channels,) that the statistics of training move, by their names in `Outcome.statistics`.

        They are those of the backbone's batch norms; a learner that averages more adds its own.
        """
        return dict(self.backbone.named_buffers())

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
    mask = episodes.query_mask
    return Outcome(masked_mean(losses, mask), masked_mean(correct, mask), statistics or {})


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (b,) of values (b, n), without those that are masked out, whatever these are."""
    if mask is None:
        return values.mean(dim=1)
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1)


def membership(labels: Tensor, way: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return one-hot rows (b, s, way) of labels (b, s), zero where masked out."""
    rows = F.one_hot(labels, way).to(dtype)
    return rows if mask is None else rows * mask.unsqueeze(-1)


def class_means(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means over classes, zero for those without members, and which have any.

    Args:
        values: (b, s, d).
        members: (b, s, way), as `membership` returns them.

    Returns:
        (b, way, d), and (b, way) bool.
    """
    count = members.sum(dim=1)
    return members.mT @ values / count.clamp_min(1).unsqueeze(-1), count > 0


def own_statistics(state: State) -> dict[str, Tensor]:
    """Return the batch-norm statistics that a state has, by the backbone's names for them."""
    return {name.removeprefix(STATISTICS): value for name, value in state.items() if name.startswith(STATISTICS)}


class EmbeddingLearner(Learner):
    """A learner that embeds each example on its own when inductive, so that an image need be embedded only once.

    In training, batch norm takes the statistics of the whole episode, support and queries; their running averages are
    what it uses when inductive. When transductive, support set and queries are each normalised by themselves.
    """

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

    def compared_features(self, state: State, x: Tensor) -> Tensor:
        """Return the learner's own features (b, n, d) of x (b, n, *x); a support set does not change them."""
        del state
        return self.comparable(self.embedded(x))

    def embedded(self, x: Tensor) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x), which `adapt_features`, `predict_features`, `comparable` take."""
        return self._embed_episodes(x, None)

    def comparable(self, features: Tensor) -> Tensor:
        """Return features (b, n, d) in the space where near examples are alike: see `compared_features`."""
        return features

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Return logits (b, q, way); in training under the batch-norm statistics of the whole episode."""
        return self._joint_logits(episodes)[0] if self.training else super().forward(episodes)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,) under the batch-norm statistics of the whole episode, and those."""
        logits, statistics = self._joint_logits(episodes)
        return query_outcome(logits, episodes, statistics)

    def _joint_logits(self, episodes: EpisodeBatch) -> tuple[Tensor, Statistics]:
        support, query, statistics = self._joint_features(episodes)
        state = self.adapt_features(support, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.predict_features(state, query), statistics

    def _joint_features(self, episodes: EpisodeBatch) -> tuple[Tensor, Tensor, Statistics]:
        """Return the features of support (b, s, d) and queries (b, q, d), and their statistics, without gradient."""
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        masks = [
            torch.ones(part.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            for part, mask in ((episodes.support_x, episodes.support_mask), (episodes.query_x, episodes.query_mask))
        ]
        unmasked = episodes.support_mask is None and episodes.query_mask is None
        features, statistics = self.embed_by_episode(x, None if unmasked else torch.cat(masks, dim=1))
        size = episodes.support_x.shape[1]
        return features[:, :size], features[:, size:], {name: value.detach() for name, value in statistics.items()}

    def _embed_episodes(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x) in the batch-norm mode that is set; zeros where masked out."""
        if self.batch_norm == "inductive":
            examples = x.flatten(0, 1)
            at_once = len(examples) if torch.is_grad_enabled() else EMBEDDED_AT_ONCE  # a graph holds them all anyway
            features = torch.cat([self.embed(part) for part in torch.split(examples, max(1, at_once))])
            features = features.view(*x.shape[:2], -1)
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
        features, statistics = self.backbone.embed(weights, self.standardise(x), mask=mask)
        return features.to(self.mean.dtype), statistics

    def embed(self, x: Tensor) -> Tensor:
        """Return features (n, d) of examples (n, *x), each by itself, under the running batch-norm statistics."""
        weights, running = dict(self.backbone.named_parameters()), self.backbone.running_statistics()
        features, _ = self.backbone.embed(weights, self.standardise(x).unsqueeze(0), running)
        return features[0].to(self.mean.dtype)


class ExampleLearner(Learner):
    """A learner that is trained on plain examples with the labels of the training classes."""

    @abstractmethod
    def train_examples(self, x: Tensor, y: Tensor) -> Outcome:
        """Return the outcome (b = 1) of examples x (n, *x) with labels y (n,) among the training classes."""
