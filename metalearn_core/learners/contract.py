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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
        decides_by_distance: of support sets of one shot, the class of the example nearest to a query in the space of
            `compared_features` has the largest logit. Elsewhere distances there show what is alike, and decide nothing.

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
    decides_by_distance: bool = False

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
            (b, way, d) are `prototypes`, in the space of `compared_features`, where that of one example is the example
            itself: by these names a prediction is explained.
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

        Those of an example do not depend on the others. Here that of the backbone under the fast weights and statistics
        of the state; where it has none, under the shared ones: an empty state is that of a learner which has seen no
        support set. A learner that compares by another distance maps its features to where it is the Euclidean one (for
        the cosine: to unit length).
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
    labels, mask = zero_padding(episodes.query_y, episodes.query_mask), episodes.query_mask
    if labels.is_floating_point():
        losses = (logits - labels).square().mean(dim=-1)
        correct = -losses.detach()
    else:
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        correct = (logits.detach().argmax(dim=-1) == labels).to(losses.dtype)
    return Outcome(masked_mean(losses, mask), masked_mean(correct, mask), statistics or {})


def zero_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values (b, n, …), zero where masked out (b, n): zero times what is no number is no zero, in gradients."""
    return values if mask is None else torch.where(mask.view(*mask.shape, *[1] * (values.dim() - 2)), values, 0)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (b,) of values (b, n), without those that are masked out, whatever these are."""
    if mask is None:
        return values.mean(dim=1)
    return torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1)


def own_statistics(state: State) -> dict[str, Tensor]:
    """Return the batch-norm statistics that a state has, by the backbone's names for them."""
    return {name.removeprefix(STATISTICS): value for name, value in state.items() if name.startswith(STATISTICS)}


class ExampleLearner(Learner):
    """A learner that is trained on plain examples with the labels of the training classes."""

    @abstractmethod
    def train_examples(self, x: Tensor, y: Tensor) -> Outcome:
        """Return the outcome (b = 1) of examples x (n, *x) with labels y (n,) among the training classes."""
