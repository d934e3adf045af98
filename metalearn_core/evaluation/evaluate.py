"""Evaluate a learner on seeded episodes: accuracy with intervals, by domain and by class, and what it confuses."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from pydantic import Field, ValidationError

from metalearn_core.bundle import load_bundle, read_training_images
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.leakage import Leakage, check_leakage
from metalearn_core.data.manifest import ClassEntry, Record, Split
from metalearn_core.data.sampler import QUARTER_TURNS, EpisodeSampler
from metalearn_core.data.shape import TaskSpan
from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.data.subset import without_classes
from metalearn_core.errors import UsageError, invalid
from metalearn_core.evaluation.scoring import EpisodeScores, Progress, Scorer
from metalearn_core.evaluation.statistics import calibration_error, new_class_interval, t_interval
from metalearn_core.learners.contract import Learner, require_shape
from metalearn_core.memory import kept_memory

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Stream, Tasks
    from metalearn_core.evaluation.regression import RegressionEvaluation

SHOWN_CONFUSIONS = 20
FEWEST_DOMAIN_EPISODES = 50
TIMED_ADAPTATIONS = 5


class Protocol(Record):
    """What an accuracy is measured on; it stands beside every number.

    Attributes:
        split: whose classes are drawn.
        way, shot, query: shape of the episodes; way and shot may be ranges, as "5-20".
        episodes: how many.
        seed: of the stream of episodes.
        batch_norm: inductive: a query's answer does not depend on the other queries; transductive: it does.
        domain_episodes: within-domain episodes for each domain; None shares half of `episodes` out among the domains
            (at least 50 each, or all of `episodes`); 0 leaves domains out.
    """

    split: Split = "test"
    way: TaskSpan = 5
    shot: TaskSpan = 1
    query: int = Field(15, ge=1)
    episodes: int = Field(1000, ge=1)
    seed: int = 0
    batch_norm: Literal["inductive", "transductive"] = "inductive"
    domain_episodes: int | None = Field(None, ge=0)

    @property
    def shape(self) -> EpisodeShape:
        """The shape of the episodes."""
        return EpisodeShape.of(self.way, self.shot, self.query)

    def episodes_by_domain(self, domains: int) -> int:
        """Return how many within-domain episodes each of the domains gets."""
        if self.domain_episodes is not None:
            return self.domain_episodes
        return min(self.episodes, max(FEWEST_DOMAIN_EPISODES, -(-self.episodes // (2 * max(domains, 1)))))


class DomainResult(Record):
    """Accuracy over episodes whose classes all come from one domain; `ci95` is a half-width over episodes."""

    accuracy: float
    ci95: float
    episodes: int


class ClassAccuracy(Record):
    """How often queries of one class were classified right; `rotation` counts quarter turns."""

    class_id: int
    rotation: int
    name: str
    domain: str
    accuracy: float
    queries: int


class Confusion(Record):
    """How often queries of one class were taken for another, `count` of the `queries` that met both in an episode."""

    class_id: int
    rotation: int
    name: str
    predicted_id: int
    predicted_rotation: int
    predicted_name: str
    count: int
    queries: int


class ConfidenceBin(Record):
    """Queries whose confidence (the greatest probability) is alike: how many, their mean confidence and accuracy."""

    queries: int
    confidence: float
    accuracy: float


class Evaluation(Record):
    """How good a learner is, and how well that is known. Accuracies and half-widths are fractions.

    Attributes:
        learner: its name.
        accuracy: mean over episodes.
        ci95: half-width of the 95 % interval over episodes: about this model on these classes alone.
        ci95_method: how it was made.
        ci95_classes: half-width of the 95 % interval for new classes like these (and domains, where there are several).
        ci95_classes_method: how it was made.
        loss: mean cross-entropy of the queries.
        ece: expected calibration error: how far confidence and accuracy are apart, weighted over the bins.
        reliability: the bins of confidence that hold a query, of 15 of equal width.
        by_domain: by within-domain episodes; None where a domain is too small.
        by_domain_reason: why, for those.
        by_class: in the order of the manifest.
        confusions: the 20 most frequent.
        adaptation_steps: gradient steps at test, where the learner takes any.
        adaptation_ms: to adapt to the support set of one episode, median, in milliseconds.
        seconds: that the whole evaluation took.
        protocol: what it was measured on.
        dataset_digest: likewise.
        leakage: what of the split the model has seen in training, which was left out; None where it was not looked at.
    """

    learner: str
    accuracy: float
    ci95: float
    ci95_method: str
    ci95_classes: float
    ci95_classes_method: str
    loss: float
    ece: float
    reliability: tuple[ConfidenceBin, ...]
    by_domain: dict[str, DomainResult | None]
    by_domain_reason: dict[str, str]
    by_class: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    adaptation_steps: int | None
    adaptation_ms: float
    seconds: float
    protocol: Protocol
    dataset_digest: str
    leakage: Leakage | None = None


def make_protocol(**values: Any) -> Protocol:
    """Return the protocol with these fields, as they come from a command line.

    Raises:
        UsageError: an unknown field, or a value that is out of range.
    """
    try:
        return Protocol(**values)
    except ValidationError as error:
        raise invalid("protocol", error, Protocol) from None


@overload
def evaluate(learner: Learner, dataset: EpisodeDataset, protocol: Protocol) -> Evaluation: ...


@overload
def evaluate(learner: Learner, dataset: SinusoidTasks, protocol: Protocol) -> "RegressionEvaluation": ...


def evaluate(learner: Learner, dataset: "Tasks", protocol: Protocol) -> "Evaluation | RegressionEvaluation":
    """Evaluate a learner; the same protocol always means the same episodes.

    Args:
        learner: on the device where it is to work; its mode and batch-norm mode are put back at the end.
        dataset: whose examples are those the learner was made for; of a distribution of regressions the error is
            measured (`RegressionEvaluation`).
        protocol: what to measure.

    Raises:
        UsageError: before any work: examples of another shape, a way the learner does not take, no transductive mode,
            too few classes or examples for the shape.
        MetalearnError: the learner's answers are no numbers.
    """
    if isinstance(dataset, SinusoidTasks):
        from metalearn_core.evaluation.regression import evaluate_regression

        return evaluate_regression(learner, dataset, protocol)
    return evaluate_scored(learner, dataset, protocol)[0]


def evaluate_scored(learner: Learner, dataset: EpisodeDataset, protocol: Protocol) -> tuple[Evaluation, EpisodeScores]:
    """Evaluate a learner as `evaluate` does; return the scores of its episodes too, so that they can be compared."""
    started = time.perf_counter()
    check_fit(learner, dataset, protocol)
    sampler = make_sampler(learner, dataset, protocol)
    domains, reasons = domain_samplers(learner, dataset, protocol)
    each = protocol.episodes_by_domain(len(domains))
    progress = Progress("evaluate", protocol.episodes + each * len(domains))
    with kept_memory(), Scorer(learner, protocol.batch_norm, progress) as scorer:
        scores = scorer.score(sampler, protocol.episodes)
        by_domain = {name: _domain_result(scorer.score(one, each)) for name, one in domains.items()}
        adaptation_ms = adaptation_time(learner, sampler)
    entries = dataset.manifest.classes
    episode_interval = t_interval(scores.accuracy)
    class_interval = new_class_interval(
        scores.accuracy,
        scores.classes,
        scores.correct,
        np.repeat(np.arange(len(entries)), QUARTER_TURNS),
        np.repeat(np.unique([entry.domain for entry in entries], return_inverse=True)[1], QUARTER_TURNS),
        query=scores.queries,
    )
    evaluation = Evaluation(
        learner=learner.info.name,
        accuracy=episode_interval.mean,
        ci95=episode_interval.half_width,
        ci95_method=f"{episode_interval.method}: this model on these classes",
        ci95_classes=class_interval.half_width,
        ci95_classes_method=f"{class_interval.method}: what new classes like these may bring",
        loss=float(scores.loss.mean()),
        ece=calibration_error(*scores.calibration),
        reliability=_reliability(scores),
        by_domain={**dict.fromkeys(reasons), **by_domain},
        by_domain_reason=reasons,
        by_class=_by_class(scores, entries),
        confusions=_confusions(scores, entries),
        adaptation_steps=getattr(learner.config, "eval_steps", None),
        adaptation_ms=adaptation_ms,
        seconds=time.perf_counter() - started,
        protocol=protocol,
        dataset_digest=dataset.digest,
    )
    return evaluation, scores


def evaluate_bundle(bundle: Path, dataset: EpisodeDataset, protocol: Protocol) -> tuple[Evaluation, EpisodeScores]:
    """Evaluate the model of a bundle folder, without the classes of the split that it has seen in training.

    Those are the classes that it was trained on, and all that share an image with its training, turned or not. The
    training split is evaluated as it is: who asks for it wants to know what was learned.

    Raises:
        MetalearnError: what `load_bundle` and `evaluate` raise; too few classes are left.
    """
    learner, description = load_bundle(bundle)
    if protocol.split == "train":
        return evaluate_scored(learner, dataset, protocol)
    check_fit(learner, dataset, protocol)
    digests = set(description.lineage.training_class_digests)
    leakage = check_leakage(dataset, protocol.split, digests, read_training_images(bundle))
    try:
        left = without_classes(dataset, protocol.split, leakage.class_digests)
        evaluation, scores = evaluate_scored(learner, left, protocol)
    except UsageError as error:
        if not leakage.class_names:
            raise
        raise UsageError(f"{leakage.finding}; then {error}") from None
    return _numbered_as(dataset, left, evaluation).model_copy(update={"leakage": leakage}), scores


def _numbered_as(dataset: EpisodeDataset, left: EpisodeDataset, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with classes by their numbers in the whole dataset, not in what was left of it."""
    name = {(entry.split, entry.digest, entry.name): entry.id for entry in dataset.manifest.classes}
    number = [name[entry.split, entry.digest, entry.name] for entry in left.manifest.classes]
    return evaluation.model_copy(
        update={
            "by_class": tuple(one.model_copy(update={"class_id": number[one.class_id]}) for one in evaluation.by_class),
            "confusions": tuple(
                one.model_copy(update={"class_id": number[one.class_id], "predicted_id": number[one.predicted_id]})
                for one in evaluation.confusions
            ),
        }
    )


def check_fit(learner: Learner, dataset: "Tasks", protocol: Protocol) -> None:
    """Raise a UsageError where a learner cannot take the episodes of a protocol at all; changes nothing."""
    found, wanted = dataset.spec, learner.spec
    if (found.modality, found.example_shape) != (wanted.modality, wanted.example_shape):
        raise UsageError(
            f"dataset {dataset.digest}: has {found.modality} examples of shape {found.example_shape}, "
            f"{learner.info.name} was trained on {wanted.modality} examples of shape {wanted.example_shape}"
        )
    if found.target_size != wanted.target_size:
        kinds = [
            "classes" if size is None else f"targets of {size} real numbers"
            for size in (found.target_size, wanted.target_size)
        ]
        raise UsageError(f"dataset {dataset.digest}: has {kinds[0]}, {learner.info.name} was trained on {kinds[1]}")
    require_shape(learner.info, protocol.shape)
    if learner.info.fixed_way and learner.way != protocol.way:
        raise UsageError(
            f"way {protocol.way}: {learner.info.name} was trained for exactly {learner.way} classes: "
            f"evaluate it with way {learner.way}, or train it for {protocol.way}"
        )
    type(learner).train_shape(protocol.shape, learner.config)  # one that is built for a number of shots says so


def make_sampler(
    learner: Learner, dataset: EpisodeDataset, protocol: Protocol, domain: str | None = None
) -> EpisodeSampler:
    """Return the stream of a protocol's episodes, drawn on the learner's device where they fit."""
    device = dataset.place_for(learner.mean.device)
    return EpisodeSampler(dataset, protocol.split, protocol.shape, seed=protocol.seed, domain=domain, device=device)


def domain_samplers(
    learner: Learner, dataset: EpisodeDataset, protocol: Protocol
) -> tuple[Mapping[str, EpisodeSampler], dict[str, str]]:
    """Return the streams of within-domain episodes by domain, and the reasons for the domains that have none."""
    samplers, reasons = {}, {}
    names = dict.fromkeys(entry.domain for entry in dataset.manifest.of_split(protocol.split))
    for name in names if protocol.domain_episodes != 0 else ():
        try:
            samplers[name] = make_sampler(learner, dataset, protocol, name)
        except UsageError as error:
            reasons[name] = str(error)
    return samplers, reasons


def _domain_result(scores: EpisodeScores) -> DomainResult:
    interval = t_interval(scores.accuracy)
    return DomainResult(accuracy=interval.mean, ci95=interval.half_width, episodes=len(scores.accuracy))


def _reliability(scores: EpisodeScores) -> tuple[ConfidenceBin, ...]:
    return tuple(
        ConfidenceBin(queries=int(queries), confidence=confidence / queries, accuracy=right / queries)
        for queries, confidence, right in scores.calibration.T.tolist()
        if queries
    )


def _by_class(scores: EpisodeScores, entries: tuple[ClassEntry, ...]) -> tuple[ClassAccuracy, ...]:
    present = scores.classes >= 0
    numbers, columns = np.unique(scores.classes[present], return_inverse=True)
    correct, queries = (np.bincount(columns, counts[present]) for counts in (scores.correct, scores.queries))
    return tuple(
        ClassAccuracy(
            class_id=int(number) // QUARTER_TURNS,
            rotation=int(number) % QUARTER_TURNS,
            name=entries[int(number) // QUARTER_TURNS].name,
            domain=entries[int(number) // QUARTER_TURNS].domain,
            accuracy=float(right / asked),
            queries=int(asked),
        )
        for number, right, asked in zip(numbers, correct, queries, strict=True)
    )


def _confusions(scores: EpisodeScores, entries: tuple[ClassEntry, ...]) -> tuple[Confusion, ...]:
    """Return the most frequent confusions, of equals the one that comes first in the manifest."""
    if not len(scores.confused):
        return ()
    numbers = QUARTER_TURNS * len(entries)
    pairs, counts = np.unique(scores.confused @ np.array([numbers, 1]), return_counts=True)
    most = np.argsort(-counts, kind="stable")[:SHOWN_CONFUSIONS]
    found = []
    for pair, count in zip(pairs[most].tolist(), counts[most].tolist(), strict=True):
        true, predicted = divmod(pair, numbers)
        met = (scores.classes == predicted).any(axis=1, keepdims=True)
        class_id, rotation = divmod(true, QUARTER_TURNS)
        predicted_id, predicted_rotation = divmod(predicted, QUARTER_TURNS)
        found.append(
            Confusion(
                class_id=class_id,
                rotation=rotation,
                name=entries[class_id].name,
                predicted_id=predicted_id,
                predicted_rotation=predicted_rotation,
                predicted_name=entries[predicted_id].name,
                count=count,
                queries=int(scores.queries[(scores.classes == true) & met].sum()),
            )
        )
    return tuple(found)


def adaptation_time(learner: Learner, stream: "Stream") -> float:
    """Return the median time to adapt to one support set, in milliseconds, after one that warms up."""
    times = []
    for number in range(TIMED_ADAPTATIONS + 1):
        episode = stream.batch(number, 1).to(learner.mean.device)
        started = time.perf_counter()
        with torch.no_grad():
            learner.adapt(episode.support_x, episode.support_y, way=episode.way, support_mask=episode.support_mask)
        if learner.mean.device.type == "cuda":
            torch.cuda.synchronize(learner.mean.device)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[1:]))
