import pytest

from metalearn_core.tracking_server import DEFAULT_EXPERIMENT, shown
from pipelines.config import RunConfig


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://user:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://user:p@secret@host/db", "postgresql://host/db"),
        ("postgresql://user:p/secret@host/db", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        ("https://user:p@secret@host", "https://host"),
        ("cannot reach mysql://u:secret@one/db or http://u:a@secret@two", "cannot reach mysql://one/db or http://two"),
    ],
)
def test_no_part_of_a_password_is_shown(uri: str, expected: str) -> None:
    assert shown(uri) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/experiments?owner=me@work",
        "sqlite:////home/me@work/mlflow.db",
        "http://host:5000 does not answer; write to me@work",
    ],
)
def test_an_address_without_credentials_is_shown_whole(text: str) -> None:
    assert shown(text) == text


def test_runs_are_looked_for_where_the_pipeline_puts_them() -> None:
    assert RunConfig().experiment == DEFAULT_EXPERIMENT
