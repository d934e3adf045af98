"""The first and the last step of a pipeline run: its MLflow run is opened, and closed with all that people look at."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from metalearn_core import tracking
from metalearn_core.data.manifest import SPLITS, Manifest
from metalearn_core.errors import UsageError
from metalearn_core.model_versions import check_name
from metalearn_core.steps.children import child_of, parent_run
from metalearn_core.steps.data import read_dataset
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.placement import MOST_GPUS, training_pod
from metalearn_core.steps.requests import (
    TrainingRequest,
    check_learners,
    evaluation_request,
    gate_rules,
    learner_items,
    of_item,
    training_request,
    training_resources,
)
from metalearn_core.steps.training import EVALUATION, evaluation_result, log_results, result_metrics
from metalearn_core.storage import read_json
from metalearn_core.storage.objects import is_address
from metalearn_core.storage.place import Place
from metalearn_core.webhook import announce

if TYPE_CHECKING:
    from metalearn_core.evaluation.ranking import Ranking

COSTS = ("train_seconds", "train_episodes", "parameters", "peak_memory_bytes", "peak_gpu_memory_bytes")
TRAIN_SHAPE = ("train_way", "train_shot", "train_query", "train_within_domain")
_CLUSTER_VARIABLE = "KUBERNETES_SERVICE_HOST"  # every pod has it


def open_run(
    experiment: str,
    learners: Sequence[str],
    *,
    storage: str,
    device: str = "auto",
    processes: int = 1,
    node_gpus: int = MOST_GPUS,
    pod: Mapping[str, Any] | None = None,
    kubeflow: Mapping[str, str] | None = None,
    **settings: Any,
) -> str:
    """Check the inputs, make the MLflow run of this pipeline run, or attach to the one that is there; return its id.

    Args:
        experiment: MLflow's; made where it does not exist.
        learners: JSON of each learner.
        storage: where datasets, results and checkpoints are kept.
        device, processes: of a training.
        node_gpus: how many GPUs the largest node of the cluster has; no parameter of the run.
        pod: inputs that choose the pod of a training; parameters of the run on a cluster only.
        kubeflow: further tags of the run: the pipeline's ids in Kubeflow, where they are known.
        settings: the pipeline's other inputs.

    Raises:
        UsageError: an input that a later step would refuse.
    """
    items = learner_items(learners)
    shape = {name: settings[name] for name in ("way", "shot", "query")}
    train_shape = {name: value for name, value in settings.items() if name in TRAIN_SHAPE}
    budget = {"episodes": settings["train_episodes"], "seconds": settings["train_seconds"]}
    training = {name: settings[name] for name in ("seed", "patience", "precision")}
    request = training_request(**shape, **train_shape, **budget, **training)
    _check_items(items, request)
    check_learners(items, request)
    evaluation_request(**shape, episodes=settings["eval_episodes"], seed=settings["eval_seed"])
    gate_rules(settings["gate"])
    check_name(settings["model_name"])
    gpus = training_pod(node_gpus, **(pod or {})).gpus
    training_resources(device=device, processes=processes, gpus=gpus)
    _check_storage(storage)
    names = " + ".join(dict.fromkeys(item["learner"] for item in items))
    source = Path(str(settings["source"])).name
    name = f"{source} {settings['way']}-way {settings['shot']}-shot: {names}"
    placement = pod if pod and _CLUSTER_VARIABLE in os.environ else {}
    where = {"storage": storage, "device": device, "processes": processes}
    return tracking.open_parent_run(
        experiment,
        pipeline_run_id(),
        name,
        params={"learners": items, **where, **settings, **placement},
        tags={tracking.SOURCE_TAG: source, **{key: value for key, value in (kubeflow or {}).items() if value}},
    )


def _check_items(items: Sequence[Mapping[str, Any]], request: TrainingRequest) -> None:
    """Refuse learners whose seeds are none, stand twice, or are not the same number for each: no table would hold."""
    seeds: dict[str, list[int]] = {}
    for item in items:
        spec, own = of_item(item, request)
        seeds.setdefault(learner_name(spec), []).append(own.seed)
    for name, own_seeds in seeds.items():
        if len(set(own_seeds)) < len(own_seeds):
            raise UsageError(f"learners: {name} stands there twice with the same seed")
    if len({len(own_seeds) for own_seeds in seeds.values()}) > 1:
        found = ", ".join(f"{name} {len(own_seeds)}" for name, own_seeds in seeds.items())
        raise UsageError(f"learners: expected the same number of training seeds for each, got {found}")


def _check_storage(storage: str) -> None:
    """Refuse a storage that the steps do not share, or that cannot be used."""
    if _CLUSTER_VARIABLE in os.environ and not is_address(storage):
        raise UsageError(
            f"input storage: got {storage!r}, which is a place in one pod: expected an address like "
            "s3://bucket/some/place, which all steps see"
        )
    Place.at(storage).check()


def close_run(
    dataset: str,
    dataset_digest: str,
    quality: Path,
    evaluations: Sequence[Path],
    decision: Path,
    command: str,
    report: Path,
) -> dict[str, Any]:
    """Complete the MLflow run: children for results that were kept, the dataset, the report, the figures, the outcome.

    Args:
        dataset: the episode dataset's location.
        dataset_digest: its digest.
        quality: the verdict on it.
        evaluations: one folder with `evaluation.json` a learner.
        decision: the gate's decision.
        command: the command that reproduces the run.
        report: where the HTML report is written.

    Returns:
        the summary that `metalearn run --json` prints, without where things are.
    """
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.quality import PAGE_NAME, REPORT_NAME, SUITE_NAME
    from metalearn_core.report.page import write_report
    from metalearn_core.report.plots import comparisons, most_confused
    from metalearn_core.steps.ranking import rank
    from metalearn_core.steps.reporting import learner_report, run_content

    run_id = parent_run()
    manifest = read_dataset(dataset, dataset_digest)
    records = [read_json(folder / EVALUATION, "evaluation") for folder in evaluations]
    verdict = read_json(decision, "decision")
    chosen = next(record for record in records if record["training"]["bundle_digest"] == verdict["bundle_digest"])
    ranking = rank(records, chosen)
    examples = EpisodeDataset.open(dataset)
    for record in records:
        child = _complete_child(record, ranking)
        tracking.log_dataset(child, manifest, dataset, context="meta-learning")
        _log_plots(child, most_confused(learner_report(record, verdict), examples))
    summary = {
        "run_id": run_id,
        "dataset": dataset_summary(dataset, manifest),
        "results": [result_summary(record) for record in records],
        "comparison": ranking.model_dump(mode="json"),
        "selected": {
            "learner": verdict["learner"],
            "name": learner_name(chosen["training"]["item"]),
            "bundle_digest": verdict["bundle_digest"],
            "model": f"models:/{verdict['model_name']}/{verdict['version']}",
            "version": verdict["version"],
        },
        "promotion": {name: verdict[name] for name in ("promoted", "reasons", "champion_before")},
    }
    content = run_content(manifest, quality, records, ranking, verdict, {"run": run_id, "command": command})
    write_report(report, content, examples)
    tracking.log_dataset(run_id, manifest, dataset, context="meta-learning")
    _log_page(run_id, report, "report.html")
    _log_plots(run_id, comparisons(content))
    _log_ranking(run_id, ranking)
    for name in (REPORT_NAME, SUITE_NAME, PAGE_NAME):
        tracking.log_artifact(run_id, quality / name, folder="data-quality")
    tracking.log_metrics(run_id, result_metrics(chosen["training"], chosen))
    tracking.tag_run(run_id, {"selected": verdict["learner"], "promoted": str(verdict["promoted"]).lower()})
    tracking.describe_run(run_id, _description(summary))
    tracking.reopen(run_id)  # what failed in an earlier attempt of a step is no reason any more
    tracking.set_outcome(run_id, "FINISHED")
    announce("finished", "close_run", _verdict(summary), run_id=run_id, pipeline_run=pipeline_run_id())
    return summary


def _verdict(summary: Mapping[str, Any]) -> str:
    """Return in one line what a run came to."""
    selected, promotion = summary["selected"], summary["promotion"]
    verdict = "is the champion" if promotion["promoted"] else "was not promoted"
    return f"{selected['name']}: {selected['model']} {verdict}: {'; '.join(promotion['reasons'])}"


def _description(summary: Mapping[str, Any]) -> str:
    """Return what MLflow's page shows above a run, in Markdown."""
    selected, promotion = summary["selected"], summary["promotion"]
    name, version = selected["model"].removeprefix("models:/").split("/")
    verdict = "is the champion" if promotion["promoted"] else "was not promoted"
    lines = [
        f"**{selected['name']}** was selected on validation episodes; "
        f"[version {version} of {name}](#/models/{name}/versions/{version}) {verdict}. "
        "The whole report: *Artifacts*, `report.html`.",
        "",
        *(f"- {reason}" for reason in promotion["reasons"]),
    ]
    return "\n".join(lines)


def _log_page(run_id: str, page: Path, name: str) -> None:
    """Log a page under a name that MLflow shows as one: KFP's path of an artifact has no suffix."""
    with TemporaryDirectory() as folder:
        tracking.log_artifact(run_id, Path(shutil.copyfile(page, Path(folder) / name)))


def _log_plots(run_id: str, pictures: Mapping[str, bytes]) -> None:
    """Log PNG pictures by their names, where MLflow shows them."""
    with TemporaryDirectory() as folder:
        for name, content in pictures.items():
            path = Path(folder) / f"{name}.png"
            path.write_bytes(content)
            tracking.log_artifact(run_id, path, folder="plots")


def _log_ranking(run_id: str, ranking: "Ranking") -> None:
    from metalearn_core.steps.ranking import write_ranking

    with TemporaryDirectory() as folder:
        for file in write_ranking(Path(folder), ranking):
            tracking.log_artifact(run_id, file)


def _complete_child(record: Mapping[str, Any], ranking: "Ranking") -> str:
    """Give the run of a model its place among the others, and its figures where they were found; return its id."""
    from metalearn_core.steps.ranking import ranking_metrics

    child = child_of(record["training"])
    name = learner_name(record["training"]["item"])
    tracking.log_metrics(child.run_id, ranking_metrics(next(one for one in ranking.learners if one.name == name)))
    if not child.finished:
        log_results(child.run_id, record["training"], record)
        tracking.set_outcome(child.run_id, "FINISHED")
    return child.run_id


def dataset_summary(location: str | Path, manifest: Manifest) -> dict[str, Any]:
    """Return what is said of a dataset in one JSON object: address, digest, and its classes by split."""
    return {
        "uri": str(location),
        "digest": manifest.digest,
        "classes": len(manifest.classes),
        "examples": sum(entry.count for entry in manifest.classes),
        "splits": {split: len(manifest.of_split(split)) for split in SPLITS},
    }


def result_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return one learner's line of the results: its figures on test episodes, their protocol, and what they cost."""
    training = record["training"]
    return {
        **evaluation_result(record["test"]),
        "name": learner_name(training["item"]),
        "options": training["item"]["options"],
        "validation_accuracy": record["validation"]["accuracy"],
        "train_seed": training["request"]["seed"],
        **{name: training[name] for name in COSTS},
        "bundle": training["bundle"],
        "bundle_digest": training["bundle_digest"],
    }
