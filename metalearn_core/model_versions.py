"""Versions of registered models in MLflow: how they are found, what their tags say, and which alias is where."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metalearn_core.bundle_fetch import DIGEST_TAG, LARGEST_VERSION, no_such_version, registered_model, version_of
from metalearn_core.errors import UsageError
from metalearn_core.tracking_server import LONGEST_TAG, client, explained, is_missing, pages

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous_champion"
LEARNER_TAG = "learner"
ACCURACY_TAG = "accuracy"
CHAMPION_BEFORE_TAG = "champion_before"
DECISION_TAG = "decision"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,199}")


@dataclass(frozen=True)
class ModelVersion:
    """A registered version, as `metalearn models` lists it. `accuracy` is a fraction; None where none was recorded."""

    name: str
    version: int
    aliases: tuple[str, ...]
    learner: str
    accuracy: float | None
    bundle_digest: str
    run_id: str
    created: datetime


def check_name(name: str) -> str:
    """Return a model's name, or raise a UsageError where it cannot be one.

    What is allowed can stand in an address (`models:/NAME@ALIAS`), in a query and in a path.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"model name {name!r}: expected letters, digits, spaces, '.', '_' or '-', starting with a letter or a digit"
        )
    return name


def models() -> tuple[ModelVersion, ...]:
    """Return all registered versions, by name, newest first."""
    mlflow_client = client()
    listed = []
    with explained():
        for model in pages(mlflow_client.search_registered_models):
            aliases = {str(alias): int(version) for alias, version in model.aliases.items()}
            versions = pages(mlflow_client.search_model_versions, filter_string=f"name = '{_quoted(model.name)}'")
            listed += [_listed(version, aliases) for version in versions]
    return tuple(sorted(listed, key=lambda entry: (entry.name, -entry.version)))


def _listed(version: Any, aliases: Mapping[str, int]) -> ModelVersion:
    tags, number = version.tags, int(version.version)
    return ModelVersion(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == number)),
        learner=tags.get(LEARNER_TAG, ""),
        accuracy=_fraction(tags.get(ACCURACY_TAG)),
        bundle_digest=tags.get(DIGEST_TAG, ""),
        run_id=version.run_id or "",
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )


def _fraction(text: str | None) -> float | None:
    """Return an accuracy from a version's tag; None where somebody else's model has something of that name."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _quoted(name: str) -> str:
    return name.replace("'", "")


def find_version(name: str, alias_or_number: str) -> Any:
    """Return MLflow's version of a model by alias or number.

    Raises:
        NoSuchVersionError: no such version; the line names those that exist.
        MetalearnError: no such model or alias; likewise.
    """
    mlflow_client = client()
    from mlflow.exceptions import MlflowException

    number = alias_or_number if alias_or_number.isdigit() else version_of(mlflow_client, name, alias_or_number)
    if int(number) > LARGEST_VERSION:
        raise no_such_version(mlflow_client, name, number)
    with explained():
        try:
            return mlflow_client.get_model_version(name, number)
        except MlflowException as error:
            if not is_missing(error):
                raise
            raise no_such_version(mlflow_client, name, number) from None


def champions_before(version: Any) -> list[str]:
    """Return the numbers of the versions that were the champion right before this one, each time that it became it.

    The latest comes first; none where it never was the champion, or was the first one.
    """
    return str(version.tags.get(CHAMPION_BEFORE_TAG, "")).split()


def aliases_of(name: str) -> dict[str, str]:
    """Return the aliases of a model and the version numbers that they point to, read now."""
    with explained():
        return {str(alias): str(version) for alias, version in registered_model(client(), name).aliases.items()}


def versions_with(name: str, digest: str) -> list[Any]:
    """Return the versions of a model that hold the bundle with this digest, lowest number first."""
    with explained():
        found = client().search_model_versions(f"name = '{name}' and tags.{DIGEST_TAG} = '{digest}'")
    return sorted(found, key=lambda version: int(version.version))


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias to a version, from wherever it pointed."""
    with explained():
        client().set_registered_model_alias(name, alias, version)


def delete_alias(name: str, alias: str) -> None:
    """Take an alias away; nothing happens where there is none."""
    with explained():
        client().delete_registered_model_alias(name, alias)


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags on a version."""
    mlflow_client = client()
    with explained():
        for key, value in tags.items():
            mlflow_client.set_model_version_tag(name, version, key, value[:LONGEST_TAG])


def untag_version(name: str, version: str, tag: str) -> None:
    """Take a tag off a version; nothing happens where it has none.

    Raises:
        NoSuchVersionError: there is no such version.
    """
    if tag in find_version(name, version).tags:
        with explained():
            client().delete_model_version_tag(name, version, tag)
