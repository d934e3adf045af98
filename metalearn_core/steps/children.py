"""The MLflow run of each learner, below that of its pipeline run: made by whichever step needs it first."""

from collections.abc import Mapping
from typing import Any

from metalearn_core import tracking
from metalearn_core.data.manifest import Manifest
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.naming import learner_name

TRAINING_TAG = "training"  # the key of the training that the run is about


def parent_run() -> str:
    """Return the id of the MLflow run of this pipeline run.

    Raises:
        MetalearnError: its first step has not made it.
    """
    run_id = tracking.find_parent_run(pipeline_run_id())
    if run_id is None:
        raise MetalearnError(f"there is no MLflow run for pipeline run {pipeline_run_id()}: its first step makes it")
    return run_id


def start_training(
    item: Mapping[str, Any], request: Mapping[str, Any], dataset: str, manifest: Manifest, key: str
) -> str:
    """Return the id of the run of a training that begins now: a new one, or that of an earlier attempt of this step.

    Args:
        item: the JSON form of a `LearnerSpec`.
        request: that of a `TrainingRequest`.
        dataset: where the dataset lies that it learns from.
        manifest: of that.
        key: of the training.
    """
    parent = parent_run()
    earlier = tracking.find_child(parent, TRAINING_TAG, key)
    if earlier is not None:
        tracking.reopen(earlier.run_id)
        return earlier.run_id
    run_id = _start(parent, item, request, manifest.digest, {TRAINING_TAG: key})
    tracking.log_dataset(run_id, manifest, dataset, context="meta-learning")
    return run_id


def child_of(training: Mapping[str, Any]) -> tracking.Child:
    """Return the run of a training in this pipeline run.

    A training that was found, not made, gets a run of its own here, which says where it comes from: the run that it
    was made in may belong to another tracking store, or be gone.

    Args:
        training: its record, the content of `training.json`.
    """
    parent = parent_run()
    found = tracking.find_child(parent, TRAINING_TAG, training["key"])
    if found is not None:
        return found
    tags = {TRAINING_TAG: training["key"], tracking.CACHED_TAG: training["run_id"]}
    return tracking.Child(
        _start(parent, training["item"], training["request"], training["dataset_digest"], tags), finished=False
    )


def _start(
    parent: str, item: Mapping[str, Any], request: Mapping[str, Any], dataset_digest: str, tags: Mapping[str, str]
) -> str:
    return tracking.start_child(
        parent,
        f"{learner_name(item)} {request['way']}-way {request['shot']}-shot seed {request['seed']}",
        tags={
            tracking.SEED_TAG: str(request["seed"]),
            tracking.LEARNER_TAG: item["learner"],
            tracking.NAME_TAG: learner_name(item),
            tracking.DATASET_TAG: dataset_digest,
            tracking.SHAPE_TAG: f"{request['way']}-way {request['shot']}-shot {request['query']}-query",
            **tags,
        },
        params={**item, "request": request},
    )
