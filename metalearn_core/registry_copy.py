"""A registered version in another registry: from staging to production, the same bundle with its lineage."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalearn_core.bundle import verify_bundle
from metalearn_core.bundle_fetch import fetch_bundle
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.model_versions import check_name, find_version, versions_with
from metalearn_core.registry import RegisteredVersion, register_bundle
from metalearn_core.tracking import finished_run
from metalearn_core.tracking_server import DEFAULT_EXPERIMENT, elsewhere, prepare, shown, sqlite_path, tracking_uri

_LINEAGE = ("dataset_digest", "pipeline_run_id", "git_commit", "metalearn.version", "decision")


def copy_version(model_name: str, version: str, target_uri: str, target_name: str | None = None) -> RegisteredVersion:
    """Copy a version to the registry at another tracking URI, where it becomes the candidate.

    The bundle's digest is checked before it is sent and after; the same bundle is one version there, however often it
    is copied. The version there, and a run of its own, say where it comes from; the gate there has yet to decide.

    Args:
        model_name: of the registered model here.
        version: an alias or version number.
        target_uri: of the other tracking server or database.
        target_name: of the model there; None: the same.

    Raises:
        UsageError: the other registry is this one.
        MetalearnError: no such model or version, its bundle is damaged, or a tracking server does not answer.
    """
    source_uri, target_name = tracking_uri(), check_name(target_name or model_name)
    if target_uri.rstrip("/") == source_uri.rstrip("/"):
        raise UsageError(f"--to {shown(target_uri)}: the model is registered there already; name another registry")
    found = find_version(check_name(model_name), version)
    bundle = fetch_bundle(model_name, None, str(found.version))
    digest = verify_bundle(bundle)
    origin = {
        "source_registry": shown(source_uri),
        "source_model": f"models:/{model_name}/{found.version}",
        "source_run_id": found.run_id or "",
        **{name: found.tags[name] for name in _LINEAGE if name in found.tags},
    }
    with elsewhere(target_uri):
        database = sqlite_path(target_uri)
        prepare(target_uri, database.parent / "artifacts" if database else None, DEFAULT_EXPERIMENT)
        return _registered(bundle, digest, target_name, _evaluation(found.tags), origin)


def _registered(
    bundle: Path, digest: str, name: str, evaluation: Mapping[str, Any], origin: Mapping[str, str]
) -> RegisteredVersion:
    there = versions_with(name, digest)
    run_id = there[0].run_id if there else finished_run(f"copy of {origin['source_model']}", origin)
    lineage = {key: value for key, value in origin.items() if key != "decision"}
    copied = register_bundle(bundle, name, run_id=run_id, evaluation=evaluation, lineage=lineage)
    if verify_bundle(fetch_bundle(name, None, copied.version)) != digest:
        raise MetalearnError(f"version {copied.version} of {name}: its bundle did not arrive as it was sent")
    return copied


def _evaluation(tags: Mapping[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(tags["evaluation"]))
    except (KeyError, ValueError):
        raise MetalearnError("the version has no evaluation: it was not registered by metalearn") from None
