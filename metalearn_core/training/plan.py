"""What is asked of a training run, and what that means for a given learner and dataset."""

from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from metalearn_core.backbones.options import parse_options
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import LARGEST_SEED, Manifest, Record
from metalearn_core.errors import UsageError
from metalearn_core.learners import LearnerSpec, learner_class
from metalearn_core.storage import text_digest
from metalearn_core.version import library_versions

Precision = Literal["auto", "fp32", "bf16"]
RESOURCES = {"checkpoint_seconds", "device", "threads", "chunk"}


class TrainingPlan(Record):
    """A training run, apart from the learner and the data.

    Attributes:
        way, shot, query: the shape of validation episodes, and of the evaluation to come.
        train_way, train_shot, train_query: the shape of training episodes; each, where None: as the learner's recipe
            wants, shrunk to what the dataset has.
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

    way: int
    shot: int
    query: int
    train_way: int | None = None
    train_shot: int | None = None
    train_query: int | None = None
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
        EpisodeShape(self.way, self.shot, self.query)
        EpisodeShape(self.train_way or self.way, self.train_shot or self.shot, self.train_query or self.query)
        return self

    @property
    def shape(self) -> EpisodeShape:
        """The shape of validation episodes, and of the evaluation to come."""
        return EpisodeShape(self.way, self.shot, self.query)


class _HasManifest(Protocol):
    @property
    def manifest(self) -> Manifest: ...


def training_shape(spec: LearnerSpec, plan: TrainingPlan, dataset: _HasManifest) -> EpisodeShape | None:
    """Return the shape of training episodes; None for a learner that trains on plain examples.

    What the recipe wants shrinks to the classes and examples of the training split (a fixed way does not, nor the shot
    below that of evaluation); what was asked for does not, and the sampler refuses it where it does not fit.

    Raises:
        UsageError: the learner's way is fixed, and `train_way` is another.
    """
    kind = learner_class(spec.learner)
    if kind.info.stream == "examples":
        return None
    if kind.info.fixed_way and plan.train_way not in (None, plan.way):
        raise UsageError(
            f"{spec.learner} is trained for the way that it is evaluated at: got train way {plan.train_way}, "
            f"way {plan.way}: leave out the train way, or make them equal"
        )
    recipe = kind.train_shape(plan.shape, parse_options(kind.Config, spec.options, spec.learner))
    entries = dataset.manifest.of_split("train")
    classes = sum(len(entry.rotations) for entry in entries)
    examples = min((entry.count for entry in entries), default=0)
    shot = plan.train_shot or min(recipe.shot, max(plan.shot, examples - 1))
    return EpisodeShape(
        way=plan.train_way or (recipe.way if kind.info.fixed_way else max(2, min(recipe.way, classes))),
        shot=shot,
        query=plan.train_query or max(1, min(recipe.query, examples - shot)),
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
