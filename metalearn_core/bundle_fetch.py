"""From what a person calls a model to the folder of its bundle: a path, a place in a bucket, a registered version."""

import atexit
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from metalearn_core.bundle import DESCRIPTION_NAME, DamagedError, fetched, verify_bundle
from metalearn_core.errors import MetalearnError, UsageError, unknown
from metalearn_core.storage.objects import is_address
from metalearn_core.storage.place import Place
from metalearn_core.tracking_server import client, explained, is_missing, quiet_mlflow, shown, tracking_uri

LARGEST_VERSION = 2**31 - 1
DIGEST_TAG = "bundle_digest"
_REGISTERED = re.compile(
    r"(?:models:/)?(?P<name>[^/@:]+)@(?P<alias>[^/@:]+)|models:/(?P<name_>[^/@:]+)/(?P<version>[0-9]+)"
)


class NoSuchVersionError(MetalearnError):
    """A version that a model does not have, or does not have any more."""


def fetch_bundle(name: str, alias: str | None, version: str | None) -> Path:
    """Fetch the bundle of a registered version, by its alias or its number, and return its folder.

    The folder is temporary: it goes when the process ends.

    Raises:
        DamagedError: its bundle is gone, damaged, or not what was registered.
        MetalearnError: no such model, alias or version (the line names those that exist), a server or a bucket that
            does not answer, or a version that was not registered by metalearn.
    """
    mlflow_client = client()
    number = version or version_of(mlflow_client, name, alias or "")
    if int(number) > LARGEST_VERSION:  # that no database can look up
        raise no_such_version(mlflow_client, name, number)
    mlflow = quiet_mlflow()
    target = Path(tempfile.mkdtemp(prefix="metalearn-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    with explained():
        try:
            registered = mlflow_client.get_model_version(name, number)
        except mlflow.exceptions.MlflowException as error:
            if not is_missing(error):
                raise
            raise no_such_version(mlflow_client, name, number) from None
        uri = f"models:/{name}/{number}"
        folder = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(target), tracking_uri=tracking_uri(), registry_uri=tracking_uri()
            )
        )
    found = sorted(folder.rglob(DESCRIPTION_NAME))
    if not found and DIGEST_TAG in registered.tags:
        with explained():
            location = mlflow_client.get_model_version_download_uri(name, number)
        raise DamagedError(f"version {number} of {name}: its bundle is gone from {shown(location)}")
    if not found:
        raise MetalearnError(f"model {uri}: holds no {DESCRIPTION_NAME}: it was not registered by metalearn")
    digest = verify_bundle(found[0].parent)
    if digest != registered.tags.get(DIGEST_TAG, digest):
        raise DamagedError(f"version {number} of {name}: its bundle is not the one that was registered")
    return found[0].parent


def version_of(mlflow_client: Any, name: str, alias: str) -> str:
    """Return the number of the version that has an alias, or raise the error that names the aliases that there are."""
    with explained():
        aliases = registered_model(mlflow_client, name).aliases
    if alias not in aliases:
        there_are = ", ".join(f"{one} (version {aliases[one]})" for one in sorted(aliases)) or "none"
        raise MetalearnError(f"model {name!r} has no alias {alias!r}; there are: {there_are}")
    return str(aliases[alias])


def no_such_version(mlflow_client: Any, name: str, number: str) -> NoSuchVersionError:
    """Return the error for a version that does not exist; it names those that do."""
    registered_model(mlflow_client, name)
    versions = sorted(int(one.version) for one in mlflow_client.search_model_versions(f"name = '{name}'"))
    there_are = ", ".join(str(one) for one in versions) or "none"
    return NoSuchVersionError(f"model {name!r} has no version {number}; there are: {there_are}")


def registered_model(mlflow_client: Any, name: str) -> Any:
    """Return the registered model, or raise the error that names the models that there are."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_registered_model(name)
    except MlflowException as error:
        if not is_missing(error):
            raise
        known = [model.name for model in mlflow_client.search_registered_models()]
        if known:
            raise unknown("model", name, known) from None
        raise MetalearnError(f"unknown model {name!r}: nothing is registered at {shown(tracking_uri())}") from None


def registered_address(address: str) -> tuple[str, str] | None:
    """Return the name, and the alias or version, of an address in MLflow's registry; None for any other address."""
    parts = _REGISTERED.fullmatch(address)
    if parts is None:
        return None
    return parts["name"] or parts["name_"], parts["alias"] or parts["version"]


def resolve_model(address: str | Path) -> Path:
    """Return the bundle folder of a model, from MLflow's registry where the address names one there.

    Args:
        address: a bundle's folder or `s3://` address; `NAME@ALIAS`, `models:/NAME@ALIAS` or `models:/NAME/VERSION` of
            the registry that MLFLOW_TRACKING_URI points to (fetched into a temporary folder that this process removes
            at its end).

    Raises:
        MetalearnError: there is no such folder, name, alias or version; the line names those that exist.
    """
    text = str(address)
    if text and Path(text).is_dir():
        return Path(text)
    if registered := _REGISTERED.fullmatch(text):
        return fetch_bundle(registered["name"] or registered["name_"], registered["alias"], registered["version"])
    if is_address(text):
        return fetched(Place.at(text))
    wanted = "wanted a bundle's folder or s3:// address, NAME@ALIAS or models:/NAME/VERSION"
    if "@" in text or ":" in text or not text:
        raise UsageError(f"model {text!r}: is no address of a model: {wanted}")
    raise MetalearnError(f"model {text!r}: there is no such folder; {wanted}")
