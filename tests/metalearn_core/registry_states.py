"""Registered models in states that take time to come about: with a history of champions, in a bucket that is away."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import registry
from metalearn_core.promotion_record import Promotion

FORCE = "the test wants it"
_VERSIONS = 3


def make_versions(workshop: Any, client: MlflowClient, bundle: Path, name: str, *champions: str) -> None:
    """Make a model of three versions that hold the same bundle; some were the champion, one after the other."""
    first = client.get_model_version("source", workshop.register(bundle, "source").version)
    client.create_registered_model(name)
    for _ in range(_VERSIONS):
        client.create_model_version(name, first.source, first.run_id, tags=dict(first.tags))
    for version in champions:
        crown(workshop, name, version)


def crown(workshop: Any, name: str, version: str) -> Promotion:
    outcome = registry.promote(name, version, None, workshop.PROTOCOL, force=FORCE, after_rollback=True)
    assert outcome.promoted, outcome.reasons
    return outcome


def put_in_a_bucket_that_is_away(
    monkeypatch: pytest.MonkeyPatch, database: str, *, version: tuple[str, str] | None = None, run_id: str = ""
) -> None:
    """Have the files of a version, by name and number, or of a run lie where nothing answers, as MLflow knows them."""
    away = "http://127.0.0.1:9"
    for variable, value in {
        "MLFLOW_S3_ENDPOINT_URL": away,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection, connection:
        if version:
            statement = "UPDATE model_versions SET storage_location = 's3://away/files' WHERE name = ? AND version = ?"
            assert connection.execute(statement, version).rowcount == 1
        if run_id:
            statement = "UPDATE runs SET artifact_uri = 's3://away/run' WHERE run_uuid = ?"
            assert connection.execute(statement, (run_id,)).rowcount == 1
