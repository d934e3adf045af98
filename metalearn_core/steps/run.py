"""The first and the last step of a pipeline run: its MLflow run is opened, and closed with all that people look at."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn_core import tracking
from metalearn_core.data.manifest import SPLITS, Manifest
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.data import read_dataset
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.training import EVALUATION, evaluation_result, result_metrics
from metalearn_core.storage import read_json


def open_run(experiment: str, learners: Sequence[str], **settings: Any) -> str:
    """Make the MLflow run that stands for this pipeline run, or attach to the one that is there; return its id.

    Args:
        experiment: MLflow's; made where it does not exist.
        learners: JSON of each learner.
        settings: the pipeline's other inputs; with the learners, the run's parameters.
    """
    items = [json.loads(learner) for learner in learners]
    names = " + ".join(dict.fromkeys(item["learner"] for item in items))
    source = Path(str(settings["source"])).name
    name = f"{source} {settings['way']}-way {settings['shot']}-shot: {names}"
    return tracking.open_parent_run(
        experiment, pipeline_run_id(), name, params={"learners": items, **settings}, tags={"source": source}
    )


def close_run(
    dataset: Path,
    dataset_digest: str,
    quality: Path,
    evaluations: Sequence[Path],
    decision: Path,
    way: int,
    shot: int,
    command: str,
    report: Path,
) -> dict[str, Any]:
    """Complete the MLflow run: children for results that were kept, the dataset, the report, the figures, the outcome.

    Args:
        dataset: the episode dataset's folder.
        dataset_digest: its digest.
        quality: the verdict on it.
        evaluations: one folder with `evaluation.json` a learner.
        decision: the gate's decision.
        way, shot: of the evaluation episodes.
        command: the command that reproduces the run.
        report: where the HTML report is written.

    Returns:
        the summary that `metalearn run --json` prints, without where things are.
    """
    from metalearn_core.steps.reporting import write_run_report

    run_id = tracking.find_parent_run(pipeline_run_id())
    if run_id is None:
        raise MetalearnError(f"there is no MLflow run for pipeline run {pipeline_run_id()}")
    manifest = read_dataset(dataset, dataset_digest)
    records = [read_json(folder / EVALUATION, "evaluation") for folder in evaluations]
    verdict = read_json(decision, "decision")
    chosen = next(record for record in records if record["training"]["bundle_digest"] == verdict["bundle_digest"])
    _add_kept_children(run_id, records, f"{way}-way {shot}-shot", manifest)
    summary = {
        "run_id": run_id,
        "dataset": dataset_summary(dataset, manifest),
        "results": [result_summary(record) for record in records],
        "selected": {
            "learner": verdict["learner"],
            "name": learner_name(chosen["training"]["item"]),
            "model": f"models:/{verdict['model_name']}/{verdict['version']}",
            "version": verdict["version"],
        },
        "promotion": {"promoted": verdict["promoted"], "reasons": verdict["reasons"]},
    }
    write_run_report(report, dataset, quality, records, verdict, {"run": run_id, "command": command})
    tracking.log_dataset(run_id, manifest, str(dataset), context="meta-learning")
    tracking.log_artifact(run_id, report)
    for page in sorted(quality.glob("quality.*")):
        tracking.log_artifact(run_id, page, folder="data-quality")
    tracking.log_metrics(run_id, result_metrics(chosen["training"], chosen))
    tracking.tag_run(run_id, {"selected": verdict["learner"], "promoted": str(verdict["promoted"]).lower()})
    tracking.set_outcome(run_id, "FINISHED")
    return summary


def _add_kept_children(run_id: str, records: Sequence[Mapping[str, Any]], shape: str, manifest: Manifest) -> None:
    """Give a learner whose training was found, not made, a child run that says where it comes from."""
    present = set(tracking.child_runs(run_id))
    for record in records:
        training = record["training"]
        if training["run_id"] in present:
            continue
        child = tracking.start_child(
            run_id,
            f"{learner_name(training['item'])} {shape}",
            tags={"learner": training["learner"], "dataset": manifest.digest, "cached_from": training["run_id"]},
            params={**training["item"], "request": training["request"]},
        )
        tracking.log_metrics(child, result_metrics(training, record))
        tracking.set_outcome(child, "FINISHED")


def dataset_summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what is said of a dataset in one JSON object: address, digest, and its classes by split."""
    return {
        "uri": str(folder),
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
        "train_seconds": training["train_seconds"],
        "train_episodes": training["train_episodes"],
        "bundle": training["bundle"],
    }
