"""The model registry in MLflow: a bundle becomes a version, once; the gate moves the champion, and back."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn_core.bundle import BundleDescription, DamagedError, read_bundle, verify_bundle
from metalearn_core.bundle_fetch import DIGEST_TAG, fetch_bundle
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.events import emit
from metalearn_core.export import export_backbone
from metalearn_core.model_versions import (
    ACCURACY_TAG,
    CANDIDATE,
    LEARNER_TAG,
    ModelVersion,
    check_name,
    models,
    set_alias,
    versions_with,
)
from metalearn_core.promotion import promote
from metalearn_core.promotion_record import Promotion
from metalearn_core.rollback import Rollback, rollback
from metalearn_core.tracking_server import LONGEST_TAG, client, explained, is_missing, lock, quiet_mlflow
from metalearn_core.version import git_commit, package_version

__all__ = [
    "ModelVersion",
    "Promotion",
    "RegisteredVersion",
    "Rollback",
    "models",
    "promote",
    "register_bundle",
    "rollback",
]

EXPORTS = "backbone"
"""The folder of a registered version's files that holds its exports: ONNX and torch.export."""
_SERVING_CODE = Path(__file__).with_name("serving_model.py")
_REQUIRED = ("filelock", "mlflow", "numpy", "pillow", "psutil", "pyarrow", "pydantic", "safetensors", "scipy", "torch")


@dataclass(frozen=True)
class RegisteredVersion:
    """A bundle in the registry: `uri` is its address, `models:/NAME/VERSION`."""

    name: str
    version: str
    bundle_digest: str
    uri: str


def register_bundle(
    bundle: Path, model_name: str, *, run_id: str, evaluation: Mapping[str, Any], lineage: Mapping[str, Any]
) -> RegisteredVersion:
    """Register a bundle as a version of a model, and give it the alias `candidate`.

    The same bundle is one version, however often and by how many processes it is registered; one that was cut off
    half-way is completed. A version whose own copy of the bundle is damaged or gone is left alone, and a new one made;
    one whose copy cannot be reached is an error, as nothing is known of it.

    Args:
        bundle: the bundle's folder.
        model_name: of the registered model, made where there is none.
        run_id: of the MLflow run that the model belongs to.
        evaluation: its JSON form; accuracy, interval and protocol are kept on the version.
        lineage: further tags, such as `dataset_digest` and `pipeline_run_id`.

    Raises:
        UsageError: the name cannot be a model's.
        MetalearnError: the bundle is damaged, there is no such run, or the tracking server or its bucket does not
            answer.
    """
    check_name(model_name)
    digest, description = verify_bundle(bundle), read_bundle(bundle)
    with lock(f"register {model_name}"):
        version = _whole_version(model_name, digest)
        if version is None:
            tags = _tags(digest, description, evaluation, lineage)
            version = _create_version(model_name, bundle, digest, run_id, tags)
        set_alias(model_name, CANDIDATE, version)
    return RegisteredVersion(model_name, version, digest, f"models:/{model_name}/{version}")


def _whole_version(name: str, digest: str) -> str | None:
    """Return the number of the version that holds the bundle, unless its copy there is damaged or gone."""
    for version in versions_with(name, digest):
        try:
            fetch_bundle(name, None, str(version.version))
        except DamagedError as error:
            emit("warning", "register", text=f"version {version.version} of {name} is damaged: {error}")
        else:
            return str(version.version)
    return None


def _create_version(name: str, bundle: Path, digest: str, run_id: str, tags: Mapping[str, str]) -> str:
    """Log the model on its run and make a version of it; of two made at once for one bundle, the first stays."""
    mlflow_client = client()
    damaged = {str(version.version): version.source for version in versions_with(name, digest)}
    with explained():
        _ensure_registered_model(mlflow_client, name)
        source = f"models:/{_logged_model(mlflow_client, bundle, digest, run_id, set(damaged.values()))}"
        created = mlflow_client.create_model_version(
            name, source, run_id, tags=dict(tags), model_id=source.removeprefix("models:/")
        )
        first = next(str(one.version) for one in versions_with(name, digest) if str(one.version) not in damaged)
        if first != str(created.version):  # a process on another machine, which no lock of ours reaches
            mlflow_client.delete_model_version(name, created.version)
    return first


def _ensure_registered_model(mlflow_client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow_client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_model(mlflow_client: Any, bundle: Path, digest: str, run_id: str, damaged: set[str]) -> str:
    """Return the id of the MLflow model that holds the bundle on this run; one that was begun is completed.

    Those whose address is among the `damaged` ones are left alone.
    """
    run = _run(mlflow_client, run_id)
    wanted = f"tags.{DIGEST_TAG} = '{digest}' and source_run_id = '{run_id}'"
    found = mlflow_client.search_logged_models([run.info.experiment_id], filter_string=wanted)
    usable = [one for one in found if f"models:/{one.model_id}" not in damaged]
    finished = next((one for one in usable if one.status == "READY"), None)
    if finished:
        return str(finished.model_id)
    begun = next((one for one in usable if one.status == "PENDING"), None)
    model = begun or mlflow_client.create_logged_model(
        run.info.experiment_id, name="few-shot-model", source_run_id=run_id, tags={DIGEST_TAG: digest}
    )
    with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
        folder = _save_model(Path(scratch), bundle, model, run_id)
        mlflow_client.log_model_artifacts(model.model_id, str(folder))
    _add_output(mlflow_client, run_id, model.model_id)
    mlflow_client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _run(mlflow_client: Any, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error):
            raise
        raise MetalearnError(f"there is no MLflow run {run_id} to register a model of") from None


def _add_output(mlflow_client: Any, run_id: str, model_id: str) -> None:
    """Show the model on its run's page, once."""
    from mlflow.entities import LoggedModelOutput

    outputs = mlflow_client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        mlflow_client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _save_model(scratch: Path, bundle: Path, model: Any, run_id: str) -> Path:
    """Write the MLflow model: code by its path, the package's sources, bundle and exports; nothing is pickled."""
    mlflow = quiet_mlflow()
    from mlflow.models import Model

    copy = scratch / "bundle"
    shutil.copytree(bundle, copy)
    sources = scratch / "sources" / "metalearn_core"
    shutil.copytree(Path(__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    described = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
    )
    mlflow.pyfunc.save_model(
        path=str(scratch / "model"),
        python_model=str(_SERVING_CODE),
        artifacts={"bundle": str(copy)},
        code_paths=[str(sources)],
        pip_requirements=_requirements(),
        mlflow_model=described,
    )
    for cache in (scratch / "model").rglob("__pycache__"):
        shutil.rmtree(cache)
    try:
        export_backbone(bundle, scratch / "model" / EXPORTS)
    except UsageError:
        pass  # this learner has no embedding
    except MetalearnError as error:
        emit("warning", "register", text=f"the version has no exports: {error}")
    return scratch / "model"


def _requirements() -> list[str]:
    """Return what serving needs at the versions installed here, without local suffixes such as `+cpu`."""
    from importlib.metadata import version

    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIRED]


def _tags(
    digest: str, description: BundleDescription, evaluation: Mapping[str, Any], lineage: Mapping[str, Any]
) -> dict[str, str]:
    protocol = evaluation["protocol"]
    figures = {name: evaluation[name] for name in ("accuracy", "ci95", "ci95_classes", "ece") if name in evaluation}
    own = description.lineage
    tags = {
        DIGEST_TAG: digest,
        LEARNER_TAG: description.learner,
        ACCURACY_TAG: repr(float(evaluation["accuracy"])),
        "shape": f"{protocol['way']}-way {protocol['shot']}-shot {protocol['query']}-query",
        "evaluation": json.dumps({**figures, "protocol": protocol}, sort_keys=True),
        "input": f"{description.input.modality} {'×'.join(map(str, description.input.example_shape))}",
        "dataset_digest": own.dataset_digest,
        "code_version": own.code_version,
        "metalearn.version": package_version(),
        "git_commit": git_commit(),
        **{name: str(value) for name, value in lineage.items()},
    }
    return {name: value[:LONGEST_TAG] for name, value in tags.items()}
