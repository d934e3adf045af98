"""What is asked of a training run, and what that means for a given learner and dataset."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from metalearn_core.backbones.options import parse_options
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import LARGEST_SEED, ClassEntry, Manifest, Record
from metalearn_core.data.sampler import no_domain_for
from metalearn_core.data.shape import Span
from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, learner_class
from metalearn_core.learners.contract import require_shape
from metalearn_core.storage import text_digest
from metalearn_core.version import library_versions

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Tasks

Precision = Literal["auto", "fp32", "bf16"]
RESOURCES = {"checkpoint_seconds", "device", "threads", "chunk"}


class TrainingPlan(Record):
    """A training run, apart from the learner and the data.

    Attributes:
        way, shot, query: the shape of validation episodes, and of the evaluation to come; way and shot may be ranges,
            as "5-20".
        train_way, train_shot, train_query: the shape of training episodes; each, where None: as the learner's recipe
            wants, shrunk to what the dataset has.
        train_within_domain: the classes of a training episode come from one domain.
        episodes: training episodes in all (a batch of plain examples counts as one); or else
        seconds: wall-clock time of training and validation together, counted over all attempts.
        seed: of the initial weights and of the stream of training episodes.
        validations: how often over the budget the validation episodes are run; 0: never, and the last weights count.
        validation_episodes: how many there are; the same ones each time, whatever the seed.
        patience: stop after so many validations in a row without a better one; None: never.
        precision: of convolutions; `auto` is bf16 where the processor computes it natively.
        checkpoint_seconds: at most so long between checkpoints.
        device: `auto` is a GPU where there is one.
        threads: None: all cores.
        chunk: training episodes that a thread takes at once; None: as many as are quickest.
    """

    way: Span
    shot: Span
    query: int
    train_way: Span | None = None
    train_shot: Span | None = None
    train_query: int | None = None
    train_within_domain: bool = False
    episodes: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    validations: int = Field(10, ge=0)
    validation_episodes: int = Field(200, ge=2)
    patience: int | None = Field(None, ge=1)
    precision: Precision = "auto"
    checkpoint_seconds: float = Field(60.0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    chunk: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.episodes is None) == (self.seconds is None):
            raise UsageError("training budget: give episodes or seconds, exactly one of them")
        EpisodeShape.of(self.way, self.shot, self.query)
        EpisodeShape.of(self.train_way or self.way, self.train_shot or self.shot, self.train_query or self.query)
        return self

    @property
    def shape(self) -> EpisodeShape:
        """The shape of validation episodes, and of the evaluation to come."""
        return EpisodeShape.of(self.way, self.shot, self.query)


def training_shape(spec: LearnerSpec, plan: TrainingPlan, dataset: "Tasks") -> EpisodeShape | None:
    """Return the shape of training episodes; None for a learner that trains on plain examples.

    Raises:
        UsageError: what `shape_in` raises.
    """
    if isinstance(dataset, SinusoidTasks):
        kind = learner_class(spec.learner)
        recipe = kind.train_shape(plan.shape, parse_options(kind.Config, spec.options, spec.learner))
        return EpisodeShape.of(
            plan.train_way or plan.shape.way, plan.train_shot or recipe.shot, plan.train_query or recipe.query
        )
    return shape_in(spec, plan, dataset.manifest)


def shape_in(spec: LearnerSpec, plan: TrainingPlan, manifest: Manifest) -> EpisodeShape | None:
    """Return the shape of training episodes from the classes of a dataset; None for a learner of plain examples.

    What the recipe wants shrinks to the classes and examples of the training split (a fixed way does not, nor the shot
    below that of evaluation); what was asked for does not, and the sampler refuses it where it does not fit.

    Raises:
        UsageError: what `wanted_shape` raises; or episodes are drawn within a domain, and none has as many classes.
    """
    asked = wanted_shape(spec, plan)
    if asked is None:
        return None
    kind, shape, room = learner_class(spec.learner), plan.shape, _room(manifest.of_split("train"), plan)
    if plan.train_way is None and not kind.info.fixed_way:
        # where way varies, each episode is capped by the domain that it is drawn from
        most = max(2, min(asked.way, room.smallest if asked.min_way is None else room.largest))
        asked = replace(asked, way=most, min_way=asked.min_way and min(asked.min_way, most))
    if plan.train_shot is None and shape.shot < asked.shot:  # a recipe that wants more than is evaluated
        asked = replace(asked, shot=max(shape.shot, min(asked.shot, room.examples - 1)))
    if plan.train_query is None and asked.min_shot is None:
        asked = replace(asked, query=max(1, min(asked.query, room.examples - asked.shot)))
    if plan.train_within_domain and room.largest < asked.least_way:
        raise no_domain_for(asked, "train", room.largest)
    return asked


def wanted_shape(spec: LearnerSpec, plan: TrainingPlan) -> EpisodeShape | None:
    """Return the shape of training episodes of classes that is asked for, whatever classes there are.

    A way or shot that the recipe takes over from evaluation varies in training as it does there. None: the learner
    trains on plain examples.

    Raises:
        UsageError: the learner cannot take episodes whose way or shot varies so, its way is fixed, and `train_way` is
            another; or its shot; or it is built for another one.
    """
    kind, shape = learner_class(spec.learner), plan.shape
    shape.require_classes()
    require_shape(kind.info, shape)
    if kind.info.stream == "examples":
        return None
    if kind.info.fixed_way and plan.train_way not in (None, plan.way):
        raise UsageError(
            f"{spec.learner} is trained for the way that it is evaluated at: got train way {plan.train_way}, "
            f"way {plan.way}: leave out the train way, or make them equal"
        )
    if not kind.info.variable_shape and plan.train_shot not in (None, plan.shot):
        raise UsageError(
            f"{spec.learner} is trained for the shot that it is evaluated at: got train shot {plan.train_shot}, "
            f"shot {plan.shot}: leave out the train shot, or make them equal"
        )
    recipe = kind.train_shape(shape, parse_options(kind.Config, spec.options, spec.learner)).spans
    asked = EpisodeShape.of(
        plan.train_way or recipe["way"], plan.train_shot or recipe["shot"], plan.train_query or int(recipe["query"])
    )
    asked.require_classes()
    require_shape(kind.info, asked)
    return asked


@dataclass(frozen=True)
class _Room:
    """What the classes of a training split have room for.

    Attributes:
        smallest: classes, rotations counted; within a domain, those of the smallest domain that has enough for the
            (least) way of evaluation.
        largest: likewise, those of the largest domain.
        examples: of the smallest class.
    """

    smallest: int
    largest: int
    examples: int


def _room(entries: Sequence[ClassEntry], plan: TrainingPlan) -> _Room:
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.domain if plan.train_within_domain else ""] += len(entry.rotations)
    largest = max(sizes.values(), default=0)
    return _Room(
        smallest=min((size for size in sizes.values() if size >= plan.shape.least_way), default=largest),
        largest=largest,
        examples=min((entry.count for entry in entries), default=0),
    )


def fingerprint(spec: LearnerSpec, plan: TrainingPlan, dataset_digest: str) -> str:
    """Return what tells one training run from another: 64 hexadecimal digits.

    What it may use (device, threads, how often it is saved) is no part of it: the checkpoint keeps the choices that
    were made. The version of torch is: another one's arithmetic may differ in the last bits.

    Args:
        spec: resolved, with every option written out.
        plan: as asked for.
        dataset_digest: of the episode dataset.
    """
    return text_digest(
        {
            "learner": spec.model_dump(mode="json"),
            "plan": plan.model_dump(mode="json", exclude=RESOURCES),
            "dataset": dataset_digest,
            "torch": library_versions()["torch"],
        }
    )
