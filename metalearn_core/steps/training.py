"""The steps of one learner: meta-train it, and evaluate it on validation and test episodes."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn_core.data.manifest import Split
from metalearn_core.data.tasks import SINUSOID, tasks_digest
from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.events import emit
from metalearn_core.plugins import plugin_digest
from metalearn_core.reuse import kept, result_digest, result_place
from metalearn_core.steps.data import read_dataset
from metalearn_core.steps.frame import patience_after
from metalearn_core.steps.requests import (
    EvaluationRequest,
    TrainingOrder,
    TrainingRequest,
    TrainingResources,
    of_item,
    training_plan,
)
from metalearn_core.steps.train_nodes import ResultTakenError
from metalearn_core.storage import read_json, write_json
from metalearn_core.storage.place import Place
from metalearn_core.version import git_commit, package_version

if TYPE_CHECKING:
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.tasks import Tasks
    from metalearn_core.evaluation.evaluate import Protocol
    from metalearn_core.learners.contract import Learner
    from metalearn_core.training.report import OnMetrics
    from metalearn_core.training.world import World

Train = Callable[[TrainingOrder], dict[str, Any]]
BUNDLE = "bundle"
TRAINING = "training.json"
EVALUATION = "evaluation.json"
EPISODES = "test_episodes"
DEFAULT_RESOURCES = TrainingResources()


def train_learner(
    dataset: str,
    dataset_digest: str,
    item: Mapping[str, Any],
    request: TrainingRequest,
    resources: TrainingResources,
    storage: Place,
    train: Train | None = None,
) -> Path:
    """Meta-train one learner as a step, or find its finished training; one that was cut off goes on.

    Args:
        dataset: the episode dataset's location.
        dataset_digest: its digest.
        item: the JSON form of a `LearnerSpec`, perhaps with a `seed` of its own.
        request: shapes, budget and seed.
        resources: what the training may use.
        storage: where finished trainings and checkpoints are kept.
        train: carries out the order; None: this machine does.

    Returns:
        a folder with the bundle in `bundle/` and what happened in `training.json`.
    """
    manifest = read_dataset(dataset, dataset_digest)
    item, request = of_item(item, request)
    key = _key(manifest.digest, item, request)
    checkpoints = storage / "checkpoints" / result_digest("training", key)

    def make(folder: Path) -> None:
        from metalearn_core import tracking
        from metalearn_core.steps.children import start_training

        place = result_place(storage / "results", "training", key)
        run_id = start_training(item, request.model_dump(), dataset, manifest, place.folder.name)
        order = TrainingOrder(
            dataset=dataset,
            item=dict(item),
            request=request,
            resources=resources,
            checkpoints=checkpoints.location,
            bundle=folder / BUNDLE,
            run_id=run_id,
        )
        try:
            record = (train or carry_out)(order)
        except BaseException as error:
            if not (may_be_kept and isinstance(error, ResultTakenError)):
                with suppress(MetalearnError), patience_after(error):
                    tracking.set_outcome(run_id, "FAILED", one_line(error))
            raise
        write_json(folder / TRAINING, {**record, "key": place.folder.name, "bundle": (place / BUNDLE).location})

    may_be_kept = True
    try:
        folder, _ = kept(storage / "results", "training", key, make)
    except ResultTakenError:  # whoever took it keeps it; or, if that one was ended, the training is this step's now
        may_be_kept = False
        folder, _ = kept(storage / "results", "training", key, make)
    checkpoints.remove()
    return folder


def train_bundle(
    dataset: str,
    item: Mapping[str, Any],
    request: TrainingRequest,
    bundle: str,
    *,
    checkpoints: str,
    restart: bool = False,
    resources: TrainingResources = DEFAULT_RESOURCES,
) -> dict[str, Any]:
    """Meta-train one learner outside a pipeline, write its bundle, and return the record of the training.

    Args:
        dataset: the episode dataset's location.
        item: the JSON form of a `LearnerSpec`.
        request: shapes, budget and seed.
        bundle: the folder to write, or an address.
        checkpoints: where each training's checkpoints have a folder of their own, by what it is.
        restart: begin anew, whatever checkpoint is there.
        resources: what the training may use.
    """
    from metalearn_core.bundle import check_place, send_bundle

    place = Place.at(bundle)
    check_place(place)
    key = _key(tasks_digest(dataset), item, request)
    order = TrainingOrder(
        dataset=dataset,
        item=dict(item),
        request=request,
        resources=resources,
        checkpoints=(Place.at(checkpoints) / result_digest("training", key)).location,
        bundle=place.folder,
        restart=restart,
    )
    record = carry_out(order)
    send_bundle(place)
    return record


def _key(dataset_digest: str, item: Mapping[str, Any], request: TrainingRequest) -> dict[str, Any]:
    """Return what a training is kept under: all that decides it but the core's own code."""
    key = {"dataset": dataset_digest, "learner": dict(item), "request": request.model_dump()}
    return key | _plugin(item["learner"])


def _plugin(learner: str) -> dict[str, str]:
    """Return what the code of a learner adds to a key: nothing, for one of the core."""
    digest = plugin_digest(learner)
    return {"plugin": digest} if digest else {}


def carry_out(order: TrainingOrder) -> dict[str, Any]:
    """Train as ordered, in this process or in several beside it, and return the record of the training."""
    if order.resources.processes == 1:
        return train_here(order)
    from metalearn_core.steps.train_processes import train_in_processes

    return train_in_processes(order)


def train_here(order: TrainingOrder, world: "World | None" = None) -> dict[str, Any]:
    """Train as ordered in this process, one of a `world` or alone.

    Returns:
        the record of the training; empty in any but the first process.

    Raises:
        MetalearnError: what `fit` raises; or memory does not hold the training.
    """
    from metalearn_core.bundle import save_bundle
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.subset import only_domain
    from metalearn_core.data.tasks import open_tasks
    from metalearn_core.evaluation.metric import metric_of
    from metalearn_core.learners import LearnerSpec
    from metalearn_core.memory import PeakMemory
    from metalearn_core.training.advice import memory_explained
    from metalearn_core.training.loop import fit
    from metalearn_core.training.world import ALONE

    world, request = world or ALONE, order.request
    spec = LearnerSpec.model_validate(order.item)
    dataset = open_tasks(order.dataset)
    if order.domain is not None and isinstance(dataset, EpisodeDataset):
        dataset = only_domain(dataset, order.domain)
    metrics = _metrics_of(order.run_id if world.leads else None)
    with PeakMemory() as peak, memory_explained(spec, world.size), metrics as on_metrics:
        result = fit(
            spec,
            dataset,
            training_plan(request, order.resources),
            checkpoint_dir=order.checkpoints,
            restart=order.restart,
            on_metrics=on_metrics,
            world=world,
        )
    if not world.leads:
        return {}
    trained_on, images = _seen(dataset)
    digest = save_bundle(
        order.bundle,
        result.learner,
        spec,
        episode=request.shape,
        lineage={
            "dataset_digest": dataset.digest,
            "dataset_uri": order.dataset if order.dataset == SINUSOID else Place.at(order.dataset).location,
            "seed": request.seed,
            "episodes": result.episodes,
            "code_version": f"{package_version()}+{git_commit()}",
            "training_class_digests": trained_on,
            "mlflow_run_id": order.run_id,
        },
        training_images=images,
    )
    return {
        "learner": spec.learner,
        "dataset_digest": dataset.digest,
        "item": spec.model_dump(mode="json"),
        "request": request.model_dump(),
        "run_id": order.run_id,
        "bundle_digest": digest,
        "train_seconds": result.seconds,
        "train_episodes": result.episodes,
        "train_shape": str(result.train_shape) if result.train_shape else "plain examples",
        "metric": metric_of(dataset.spec).name,
        "best_validation": None if math.isnan(result.best_validation) else result.best_validation,
        "parameters": sum(parameter.numel() for parameter in result.learner.parameters()),
        "peak_memory_bytes": peak.resident_bytes,
        "peak_gpu_memory_bytes": peak.gpu_bytes,
        "history": result.history,
    }


def _seen(dataset: "Tasks") -> tuple[list[str], list[bytes] | None]:
    """Return the content hashes of the training classes and of their examples: what a model has seen."""
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.subset import split_hashes

    if not isinstance(dataset, EpisodeDataset):
        return [], None
    return [entry.digest for entry in dataset.manifest.of_split("train")], split_hashes(dataset, "train")


@contextmanager
def _metrics_of(run_id: str | None) -> "Iterator[OnMetrics | None]":
    """Yield what logs metrics to an MLflow run; None without one."""
    if run_id is None:
        yield None
        return
    from metalearn_core.metric_buffer import MetricBuffer

    with MetricBuffer(run_id) as buffer:
        yield buffer.log


def evaluate_learner(
    dataset: str, dataset_digest: str, training: Path, request: EvaluationRequest, storage: Place
) -> Path:
    """Evaluate a trained learner on validation episodes, for selection, and on test episodes, for the report.

    Args:
        dataset: the episode dataset's location.
        dataset_digest: its digest.
        training: what `train_learner` returned (or a copy of it).
        request: shape, number and seed of the episodes; inductive.
        storage: where evaluations are kept.

    Returns:
        a folder with `evaluation.json`: `training` (as recorded), `validation`, `test`, the accuracy of each test
        episode, for comparison with other learners on the same ones, and `explanation` of answers on test episodes
        (None where there was none to be had).
    """
    record = read_json(training / TRAINING, "training")
    digest = read_dataset(dataset, dataset_digest).digest
    key = {"dataset": digest, "bundle": record["bundle_digest"], "request": request.model_dump()}
    key |= _plugin(record["learner"])

    def make(folder: Path) -> None:
        from metalearn_core.bundle import load_bundle
        from metalearn_core.data.dataset import EpisodeDataset
        from metalearn_core.evaluation.evaluate import Protocol, evaluate_bundle

        opened = EpisodeDataset.open(dataset)
        results: dict[str, Any] = {}
        splits: tuple[Split, ...] = ("validation", "test")
        for split in splits:
            domain_episodes = 0 if split == "validation" else None  # selection looks at the whole alone
            protocol = Protocol(split=split, domain_episodes=domain_episodes, **request.model_dump())
            evaluation, scores = evaluate_bundle(training / BUNDLE, opened, protocol)
            results[split] = evaluation.model_dump(mode="json")
            results[EPISODES] = scores.accuracy.tolist()
            if evaluation.leakage and evaluation.leakage.class_names:
                emit("warning", "evaluate", text=f"{record['learner']}: {evaluation.leakage.finding}")
        seen = evaluation.leakage.class_digests if evaluation.leakage else ()
        learner, _ = load_bundle(training / BUNDLE)
        if (own := learner.batch_norm) != protocol.batch_norm:
            text = f"trained {own}, tested {protocol.batch_norm}; `evaluate --batch-norm {own}` tests its own mode"
            emit("warning", "evaluate", text=f"{record['learner']}: {text}")
        results["explanation"] = explanation_of(learner, opened, protocol, seen)
        write_json(folder / EVALUATION, {"training": record, **results})

    from metalearn_core import tracking
    from metalearn_core.steps.children import child_of

    try:
        folder, was_kept = kept(storage / "results", "evaluation", key, make)
    except Exception as error:
        with suppress(MetalearnError):
            tracking.set_outcome(child_of(record).run_id, "FAILED", f"evaluate: {one_line(error)}")
        raise
    if not was_kept:
        child = child_of(record)
        log_results(child.run_id, record, read_json(folder / EVALUATION, "evaluation"))
        tracking.set_outcome(child.run_id, "FINISHED")
    return folder


def explanation_of(
    learner: "Learner", dataset: "EpisodeDataset", protocol: "Protocol", seen: Collection[str] = ()
) -> dict[str, Any] | None:
    """Return the explanation of a learner's answers; None, with a warning, where it fails: an evaluation is worth more.

    A learner that somebody else wrote may keep a state that says something else under the names that explain it.

    Args:
        learner, dataset, protocol: as evaluated.
        seen: content hashes of the classes that the evaluation left out.
    """
    from metalearn_core.explanation.learner import explain_learner

    if dataset.spec.target_size is not None:
        return None
    try:
        return explain_learner(learner, dataset, protocol, seen).model_dump(mode="json")
    except Exception as error:
        text = f"{learner.info.name}: the report goes without an explanation of its answers: {one_line(error)}"
        emit("warning", "evaluate", text=text)
        return None


def evaluation_result(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one evaluation, with their protocol, as the command line's JSON has them.

    Args:
        evaluation: the JSON form of an `Evaluation`, or of a `RegressionEvaluation`.
    """
    if "mse" in evaluation:
        errors = ("learner", "mse", "ci95", "points", "adaptation_steps", "dataset_digest")
        asked = ("episodes", "shot", "query", "split", "seed", "batch_norm")
        return {name: evaluation[name] for name in errors} | {name: evaluation["protocol"][name] for name in asked}
    figures = ("learner", "accuracy", "ci95", "ci95_classes", "ece", "by_domain", "by_domain_reason", "dataset_digest")
    leakage = evaluation["leakage"]
    protocol = ("episodes", "way", "shot", "query", "split", "seed", "batch_norm")
    return {
        **{name: evaluation[name] for name in figures},
        **{name: evaluation["protocol"][name] for name in protocol},
        "adaptation_steps": evaluation["adaptation_steps"],
        "adaptation_ms": evaluation["adaptation_ms"],
        "leakage": leakage and {name: value for name, value in leakage.items() if name != "class_digests"},
    }


def log_results(run_id: str, training: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Log the figures of a model on its run: at the end of its curves, so that they are the latest ones."""
    from metalearn_core import tracking

    tracking.log_metrics(run_id, result_metrics(training, results), step=training["train_episodes"])


def result_metrics(training: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a learner that stand on its MLflow run: accuracies with half-widths, and what they cost."""
    metrics: dict[str, float] = {}
    for split in ("validation", "test"):
        for name in ("accuracy", "ci95", "ci95_classes", "ece"):
            value = results[split].get(name)
            if value is not None:
                metrics[f"{split}/{name}"] = value
    for domain, figures in results["test"]["by_domain"].items():
        if figures is not None:
            metrics[f"test/accuracy/{domain}"] = figures["accuracy"]
    metrics["test/adaptation_ms"] = results["test"]["adaptation_ms"]
    for name in ("train_seconds", "train_episodes", "parameters"):
        metrics[name] = training[name]
    metrics["train/peak_memory_mb"] = training["peak_memory_bytes"] / 1e6
    if training["peak_gpu_memory_bytes"]:
        metrics["train/peak_gpu_memory_mb"] = training["peak_gpu_memory_bytes"] / 1e6
    return metrics
