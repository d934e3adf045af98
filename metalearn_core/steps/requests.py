"""What is asked of the steps, as values that are checked before any work: training, evaluation, rules of promotion."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from metalearn_core.data.manifest import LARGEST_SEED, Record
from metalearn_core.data.shape import ClassSpan, EpisodeShape, OptionalSpan, TaskSpan
from metalearn_core.errors import UsageError, invalid

if TYPE_CHECKING:
    from metalearn_core.data.manifest import Manifest
    from metalearn_core.gate import GateRules
    from metalearn_core.training.plan import TrainingPlan

Request = TypeVar("Request", bound=Record)
SEED = "seed"  # of a learner's training, in an item of the pipeline's loop; without one the run's counts


class TrainingRequest(Record):
    """What a learner is trained for, and for how long.

    Attributes:
        way, shot, query: the shape of evaluation episodes; way and shot may be ranges, as "5-20".
        train_way, train_shot, train_query: of training episodes; 0: as the learner's recipe wants.
        train_within_domain: the classes of a training episode come from one domain.
        episodes, seconds: the budget, one of the two; 0: the other decides.
        seed: of the initial weights and the stream of training episodes.
        validations: how often over the budget; 0: never, and the last weights count.
        patience: stop after so many validations in a row without a better one; 0: never.
        precision: of convolutions; `auto` is bf16 where the processor computes it natively.
    """

    way: TaskSpan
    shot: TaskSpan
    query: int = Field(ge=1)
    train_way: OptionalSpan = 0
    train_shot: OptionalSpan = 0
    train_query: int = Field(0, ge=0)
    train_within_domain: bool = False
    episodes: int = Field(0, ge=0)
    seconds: float = Field(0, ge=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    validations: int = Field(10, ge=0)
    patience: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @property
    def shape(self) -> EpisodeShape:
        """The shape of evaluation episodes."""
        return EpisodeShape.of(self.way, self.shot, self.query)


class TrainingResources(Record):
    """What a training may use: it ends with the same model whatever that is, but for rounding.

    Attributes:
        device: `auto` is a GPU where there is one.
        processes: that share each step's episodes; on GPUs one each.
        chunk: training episodes that a thread or a GPU takes at once; 0: as many as are quickest.
        checkpoint_seconds: at most so long between checkpoints.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = Field(1, ge=1, le=1024)
    chunk: int = Field(0, ge=0)
    checkpoint_seconds: float = Field(60.0, ge=0, allow_inf_nan=False)


class TrainingOrder(Record):
    """Everything that a process which trains must know.

    Attributes:
        dataset: the episode dataset's location.
        item: the JSON form of a `LearnerSpec`.
        request: shapes, budget and seed.
        resources: what it may use.
        checkpoints: where this training's checkpoints are, and no others.
        bundle: the folder to write.
        domain: whose classes alone are trained on; None: all.
        run_id: the MLflow run that metrics go to; None: nowhere.
        restart: begin anew, whatever checkpoint is there.
    """

    dataset: str
    item: dict[str, Any]
    request: TrainingRequest
    resources: TrainingResources
    checkpoints: str
    bundle: Path
    domain: str | None = None
    run_id: str | None = None
    restart: bool = False


class EvaluationRequest(Record):
    """The episodes that learners are measured on; `seed` is that of the episodes."""

    way: ClassSpan
    shot: TaskSpan
    query: int = Field(ge=1)
    episodes: int = Field(1000, ge=2)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)


def of_item(item: Mapping[str, Any], request: TrainingRequest) -> tuple[dict[str, Any], TrainingRequest]:
    """Return the `LearnerSpec` of an item of the pipeline's loop, and the request with the item's seed, if it has one.

    A run with several training seeds has an item for each; what a training is kept under does not tell it from one of
    another run with that seed.

    Raises:
        UsageError: the seed is none.
    """
    spec = {name: value for name, value in item.items() if name != SEED}
    if SEED not in item:
        return spec, request
    return spec, _checked(TrainingRequest, "learner's", {**request.model_dump(), SEED: item[SEED]})


def training_request(**values: Any) -> TrainingRequest:
    """Return a request from a pipeline's inputs.

    Raises:
        UsageError: a value is out of range, or the budget is not exactly one of episodes and seconds.
    """
    request = _checked(TrainingRequest, "input", values)
    if bool(request.episodes) == bool(request.seconds):
        raise UsageError(
            f"training budget: give episodes or seconds, exactly one of them; got {request.episodes} episodes and "
            f"{request.seconds:g} seconds"
        )
    return request


def training_plan(request: TrainingRequest, resources: TrainingResources) -> "TrainingPlan":
    """Return what a request means where a learner is trained."""
    from metalearn_core.training.plan import TrainingPlan

    return TrainingPlan(
        way=request.way,
        shot=request.shot,
        query=request.query,
        train_way=request.train_way or None,
        train_shot=request.train_shot or None,
        train_query=request.train_query or None,
        train_within_domain=request.train_within_domain,
        episodes=request.episodes or None,
        seconds=request.seconds or None,
        seed=request.seed,
        validations=request.validations,
        patience=request.patience or None,
        precision=request.precision,
        device=resources.device,
        chunk=resources.chunk or None,
        checkpoint_seconds=resources.checkpoint_seconds,
    )


def training_resources(gpus: int | str = 0, **values: Any) -> TrainingResources:
    """Return resources from a pipeline's inputs.

    Args:
        gpus: of each pod that trains: with some, each has a process, and nothing else trains, lest a processor hold
            them.
        values: fields of `TrainingResources`.

    Raises:
        UsageError: a value is out of range, or a processor is to train beside GPUs.
    """
    resources = _checked(TrainingResources, "input", values)
    if not int(gpus):
        return resources
    if resources.device == "cpu":
        raise UsageError(f"input device: got 'cpu' beside train_gpus {gpus}: take one of the two")
    return resources.model_copy(update={"device": "cuda", "processes": max(resources.processes, int(gpus))})


def evaluation_request(**values: Any) -> EvaluationRequest:
    """Return a request from a pipeline's inputs.

    Raises:
        UsageError: a value is out of range.
    """
    return _checked(EvaluationRequest, "input", values)


def gate_rules(values: Mapping[str, Any]) -> "GateRules":
    """Return the rules of promotion.

    Raises:
        UsageError: an unknown rule, or a value that it cannot have.
    """
    from metalearn_core.gate import GateRules

    return _checked(GateRules, "gate rule", values)


def learner_items(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the learners of a run from the JSON of each `LearnerSpec`.

    Raises:
        UsageError: there is none, one is no JSON, or it has no learner.
    """
    items = []
    for text in texts:
        try:
            item = json.loads(text)
        except ValueError:
            raise UsageError(f"learners: expected JSON of a learner, got {text!r}") from None
        if not isinstance(item, dict) or not isinstance(item.get("learner"), str):
            raise UsageError(f"learners: expected an object with the name of a learner, got {text!r}")
        items.append({"options": {}, "backbone": "conv4", "backbone_options": {}, **item})
    if not items:
        raise UsageError("learners: there is none")
    return items


def check_learners(
    items: Sequence[Mapping[str, Any]], request: TrainingRequest, manifest: "Manifest | None" = None
) -> None:
    """Refuse a learner that cannot be trained as it is asked for, before any is.

    Args:
        items: as `learner_items` returns them.
        request: the episodes, by their shapes; its budget does not matter.
        manifest: of the dataset; None: it is not built yet, and nothing is said of what depends on it.

    Raises:
        UsageError: a learner, backbone or option is unknown, or the learner cannot take the episodes, or with its
            backbone the examples; the learner is named.
    """
    from metalearn_core.learners import LearnerSpec, make_learner, resolve_spec
    from metalearn_core.training.plan import shape_in, wanted_shape

    plan = training_plan(request.model_copy(update={"episodes": 1, "seconds": 0}), TrainingResources())
    for text in dict.fromkeys(json.dumps(of_item(item, request)[0], sort_keys=True) for item in items):
        spec = _checked(LearnerSpec, "learner's", json.loads(text))
        try:
            if manifest is None:
                wanted_shape(resolve_spec(spec), plan)
            else:
                shape_in(spec, plan, manifest)
                make_learner(spec, manifest.spec, way=plan.shape.way)
        except UsageError as error:
            said = str(error)
            raise UsageError(said if spec.learner in said else f"{spec.learner}: {said}") from None


def _checked(model: type[Request], what: str, values: Mapping[str, Any]) -> Request:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise invalid(what, error, model) from None
