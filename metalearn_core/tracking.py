"""Runs in MLflow: one parent run a pipeline run, a child run for each learner, and what a person compares them by.

Every function works on the server or database that MLFLOW_TRACKING_URI names, and raises `MetalearnError`, one line
that names it, when that does not answer.
"""

import getpass
import json
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metalearn_core.data.manifest import SPLITS, Manifest
from metalearn_core.errors import MetalearnError
from metalearn_core.metric_buffer import METRICS_A_CALL, MetricBuffer
from metalearn_core.tracking_kubeflow import attached_run, kubeflow_tags, missing_tags, tagged_run
from metalearn_core.tracking_outcome import (
    PARENT_TAG,
    REASON_TAG,
    ROLE_TAG,
    end_failed,
    end_orphans,
    mark_failed,
    owner_tags,
    reopen,
    set_outcome,
)
from metalearn_core.tracking_server import (
    DEFAULT_EXPERIMENT,
    LONGEST_TAG,
    client,
    experiment_id,
    explained,
    lock,
    pages,
    prepare,
)
from metalearn_core.version import git_commit, image_name, package_version

__all__ = [
    "DEFAULT_EXPERIMENT",
    "LearnerResult",
    "MetricBuffer",
    "RunSummary",
    "describe_run",
    "end_failed",
    "find_parent_run",
    "latest_experiment",
    "list_runs",
    "log_artifact",
    "log_dataset",
    "log_metrics",
    "mark_failed",
    "open_parent_run",
    "prepare",
    "reopen",
    "set_outcome",
    "start_child",
    "tag_run",
]

LEARNER_TAG = "learner"
NAME_TAG = "learner_with_options"
DATASET_TAG = "dataset"
SOURCE_TAG = "source"
SHAPE_TAG = "shape"
SEED_TAG = "train_seed"
CACHED_TAG = "cached_from"
REQUEST_TAG = "metalearn.request"
IMAGE_TAG = "metalearn.image"

_LONGEST_PARAMETER = 6000
_LONGEST_KEY = 250
_PARAMETERS_A_CALL = 100
_TAGS_A_CALL = 100


@dataclass(frozen=True)
class LearnerResult:
    """What one learner of a pipeline run reached: fractions of the test queries, None where it got no figure."""

    run_id: str
    learner: str
    accuracy: float | None
    ci95: float | None
    shape: str
    cached_from: str | None
    seed: str = ""


@dataclass(frozen=True)
class RunSummary:
    """One pipeline run, as `metalearn runs` lists it. `status` is MLflow's word; `reason` says why it failed."""

    run_id: str
    name: str
    status: str
    start: datetime
    seconds: float | None
    dataset: str
    reason: str
    results: tuple[LearnerResult, ...]


def open_parent_run(
    experiment: str,
    pipeline_run_id: str,
    name: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Return the id of the run of a pipeline run, made where there is none.

    Where KFP's plugin sets MLFLOW_RUN_ID, the run at the top of that one wins, whatever its experiment. Next comes a
    run that is tagged with the pipeline run's id, the plugin's or ours. Two processes that ask at once get the same
    run. Other runs of its experiment that still run by their status, though the process on this machine that they
    belonged to is gone, are ended.

    Args:
        experiment: the name of the experiment that a new run is made in.
        pipeline_run_id: KFP's id of the pipeline run.
        name: of a new run.
        params: nested configuration; logged flat as `cfg/…`, values cut at 6,000 characters.
        tags: further tags, beside the version, the git commit and the pipeline run's id.
    """
    own = {ROLE_TAG: "pipeline", **kubeflow_tags(pipeline_run_id), **owner_tags()}
    every_tag = {**own, **_code_tags(), **(tags or {})}
    with lock("parent run"), explained():
        run_id = find_parent_run(pipeline_run_id)
        if run_id is None:
            run_id = _create_run(client(), experiment_id(experiment), name, every_tag)
        else:
            tag_run(run_id, missing_tags(client().get_run(run_id), every_tag))
        _log_params(run_id, params or {})
        end_orphans(run_id)
    return run_id


def find_parent_run(pipeline_run_id: str) -> str | None:
    """Return the id of the run of a pipeline run, made by KFP's plugin or by its first step; None where there is none.

    Raises:
        MetalearnError: MLFLOW_RUN_ID is set, and names no run of this tracking server.
    """
    mlflow_client = client()
    with explained():
        return attached_run(mlflow_client) or tagged_run(mlflow_client, pipeline_run_id)


def start_child(
    parent_id: str, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
) -> str:
    """Make a run below another, and return its id.

    Args:
        parent_id: the run of the pipeline run.
        name: of the child, as MLflow's page shows it: the learner and its shape; the parent's data follow.
        tags: such as `LEARNER_TAG`, `DATASET_TAG`, `SHAPE_TAG`, `CACHED_TAG`.
        params: nested configuration; logged flat as `cfg/…`.
    """
    mlflow_client = client()
    every_tag = {ROLE_TAG: "learner", PARENT_TAG: parent_id, **_code_tags(), **(tags or {})}
    with explained():
        parent = mlflow_client.get_run(parent_id)
        if source := parent.data.tags.get(SOURCE_TAG):
            name, every_tag[SOURCE_TAG] = f"{name} on {source}", source
        run_id = _create_run(mlflow_client, parent.info.experiment_id, name, every_tag)
        _log_params(run_id, params or {})
    return run_id


def finished_run(name: str, tags: Mapping[str, str]) -> str:
    """Make a run that is over already, in the experiment of this project, and return its id."""
    mlflow_client = client()
    with explained():
        run_id = _create_run(mlflow_client, experiment_id(DEFAULT_EXPERIMENT), name, {**_code_tags(), **tags})
        mlflow_client.set_terminated(run_id)
    return run_id


def _create_run(mlflow_client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Make a run, once, and return its id.

    A request whose answer is lost, as a server's is that is killed, is sent again by MLflow's client, and would make a
    second run that nobody ends. So each has a tag of its own, and what is found beside the first one is deleted.
    """
    request = uuid.uuid4().hex
    every_tag = _cut_tags({**tags, REQUEST_TAG: request})
    mlflow_client.create_run(experiment, run_name=name, tags=every_tag)
    oldest = ["attributes.start_time ASC", "attributes.run_id ASC"]
    made = mlflow_client.search_runs([experiment], f"tags.`{REQUEST_TAG}` = '{request}'", order_by=oldest)
    for twin in made[1:]:
        mlflow_client.delete_run(twin.info.run_id)
    return str(made[0].info.run_id)


@dataclass(frozen=True)
class Child:
    """The run of a learner below that of a pipeline run."""

    run_id: str
    finished: bool


def find_child(parent_id: str, tag: str, value: str) -> Child | None:
    """Return the latest of the learners' runs below a pipeline run's that have a tag with this value; None without."""
    mlflow_client = client()
    with explained():
        experiment = mlflow_client.get_run(parent_id).info.experiment_id
        runs = [run for run in _children(mlflow_client, [experiment], parent_id) if run.data.tags.get(tag) == value]
    return Child(str(runs[-1].info.run_id), runs[-1].info.status == "FINISHED") if runs else None


def tag_run(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags on a run."""
    from mlflow.entities import RunTag

    entities = [RunTag(key, value) for key, value in _cut_tags(tags).items()]
    mlflow_client = client()
    with explained():
        for part in _parts(entities, _TAGS_A_CALL):
            mlflow_client.log_batch(run_id, tags=part)


def describe_run(run_id: str, text: str) -> None:
    """Set the description that MLflow's page shows on a run, in Markdown."""
    tag_run(run_id, {"mlflow.note.content": text})


def log_dataset(run_id: str, manifest: Manifest, uri: str, context: str = "train") -> None:
    """Say on a run which dataset it used, by the digest of its manifest.

    Args:
        run_id: the run.
        manifest: of the episode dataset.
        uri: where the dataset lies.
        context: what it was used for: `train`, `test`, …
    """
    mlflow_client = client()
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has two names for a local folder, and says so
        described = MetaDataset(
            resolve_dataset_source(uri), name=f"episodes-{manifest.digest[:12]}", digest=manifest.digest
        )
    fields = described.to_dict()
    profile = {
        "examples": sum(entry.count for entry in manifest.classes),
        "classes": {split: len(manifest.of_split(split)) for split in SPLITS},
    }
    dataset = Dataset(
        fields["name"], fields["digest"], fields["source_type"], fields["source"], profile=json.dumps(profile)
    )
    with explained():
        mlflow_client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        mlflow_client.set_tag(run_id, DATASET_TAG, manifest.digest)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log figures of a run at one step; what MLflow refuses in a name (as a domain's may hold) becomes an underscore.

    What is logged step after step goes through a `MetricBuffer` instead.
    """
    mlflow_client = client()
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entities = [Metric(_key(name), float(value), now, step) for name, value in metrics.items()]
    with explained():
        for part in _parts(entities, METRICS_A_CALL):
            mlflow_client.log_batch(run_id, metrics=part)


def log_artifact(run_id: str, path: Path, folder: str | None = None) -> None:
    """Keep a file, or a folder with all that is in it, as an artifact of a run.

    Args:
        run_id: the run.
        path: of the file or folder; a folder keeps its name.
        folder: below the run's artifacts; None is their root.

    Raises:
        MetalearnError: there is no such file, or it cannot be written where the artifacts lie.
    """
    if not path.exists():
        raise MetalearnError(f"artifact: there is no {path}")
    mlflow_client = client()
    with explained():
        if path.is_dir():
            mlflow_client.log_artifacts(run_id, str(path), "/".join(part for part in (folder, path.name) if part))
        else:
            mlflow_client.log_artifact(run_id, str(path), folder)


def list_runs(limit: int = 20, experiment: str = DEFAULT_EXPERIMENT) -> tuple[RunSummary, ...]:
    """Return the latest pipeline runs of an experiment, newest first, with each learner's figures on test episodes."""
    mlflow_client = client()
    with explained():
        found = mlflow_client.get_experiment_by_name(experiment)
        if found is None:
            return ()
        identity = [found.experiment_id]
        newest = ["attributes.start_time DESC"]
        runs = mlflow_client.search_runs(
            identity, f"tags.`{ROLE_TAG}` = 'pipeline'", max_results=limit, order_by=newest
        )
        return tuple(_summary(run, _children(mlflow_client, identity, run.info.run_id)) for run in runs)


def latest_experiment() -> Any:
    """Return MLflow's `Experiment` that a pipeline run was written to last; None where there is none."""
    mlflow_client = client()
    with explained():
        experiments = {experiment.experiment_id: experiment for experiment in pages(mlflow_client.search_experiments)}
        query, newest = f"tags.`{ROLE_TAG}` = 'pipeline'", ["attributes.start_time DESC"]
        runs = mlflow_client.search_runs(list(experiments), query, max_results=1, order_by=newest)
    return experiments[runs[0].info.experiment_id] if runs else None


def _children(mlflow_client: Any, experiments: list[str], parent_id: str) -> list[Any]:
    query = f"tags.`{PARENT_TAG}` = '{parent_id}' and tags.`{ROLE_TAG}` = 'learner'"
    return list(mlflow_client.search_runs(experiments, query, order_by=["attributes.start_time ASC"]))


def _summary(run: Any, children: list[Any]) -> RunSummary:
    start, end, tags = run.info.start_time, run.info.end_time, run.data.tags
    return RunSummary(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        start=datetime.fromtimestamp(start / 1000, UTC),
        seconds=(end - start) / 1000 if end else None,
        dataset=tags.get(DATASET_TAG, ""),
        reason=tags.get(REASON_TAG, ""),
        results=tuple(
            LearnerResult(
                run_id=child.info.run_id,
                learner=child.data.tags.get(NAME_TAG, child.info.run_name),
                accuracy=child.data.metrics.get("test/accuracy"),
                ci95=child.data.metrics.get("test/ci95"),
                shape=child.data.tags.get(SHAPE_TAG, ""),
                cached_from=child.data.tags.get(CACHED_TAG),
                seed=child.data.tags.get(SEED_TAG, ""),
            )
            for child in children
        ),
    )


def _code_tags() -> dict[str, str]:
    tags = {"metalearn.version": package_version(), "mlflow.source.git.commit": git_commit()}
    tags |= {"mlflow.source.name": "metalearn", "mlflow.source.type": "LOCAL"}
    if image := image_name():
        return {**tags, IMAGE_TAG: image}
    with suppress(OSError, KeyError):  # a user without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters that the run does not have yet: MLflow lets none change, and a repeated step brings them again."""
    from mlflow.entities import Param

    mlflow_client = client()
    present = mlflow_client.get_run(run_id).data.params
    entities = [Param(name, value) for name, value in _flat("cfg", params) if name not in present]
    for part in _parts(entities, _PARAMETERS_A_CALL):
        mlflow_client.log_batch(run_id, params=part)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}/{name}", inner)
    elif not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        yield _key(prefix), text[:_LONGEST_PARAMETER]


def _key(name: str) -> str:
    """Return a name with what MLflow refuses in a key replaced, and no empty, `.` or `..` between its slashes."""
    parts = [re.sub(r"[^\w.\- ]", "_", part, flags=re.ASCII) for part in name.split("/")]
    return "/".join("_" if part in {"", ".", ".."} else part for part in parts)[:_LONGEST_KEY]


def _cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {name[:_LONGEST_KEY]: str(value)[:LONGEST_TAG] for name, value in tags.items()}


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
