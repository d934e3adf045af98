"""What all tests share: no skip goes unseen where everything that tests need is installed."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

SKIPS_FAIL = "METALEARN_SKIPS_FAIL"
OMNIGLOT = "METALEARN_OMNIGLOT"


@pytest.fixture(scope="session")
def omniglot() -> Path:
    """The folder that Omniglot's background set was unpacked into."""
    path = os.environ.get(OMNIGLOT)
    if not path:
        pytest.skip(f"{OMNIGLOT} does not say where Omniglot's background set is unpacked")
    return Path(path)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 endpoint, over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket that this test's process and those that it starts can use, with an empty cache."""
    from metalearn_core.storage import objects

    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_REGION": "us-east-1",
        "METALEARN_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    objects.client.cache_clear()
    name = f"bucket-{uuid.uuid4().hex}"
    objects.client().create_bucket(Bucket=name)
    yield f"s3://{name}"
    objects.client.cache_clear()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on, or writes to, what the person who runs it has set up."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_RUN_ID",
        "METALEARN_HOME",
        "METALEARN_EVENTS",
        "METALEARN_OWNER",
        "METALEARN_WEBHOOK_URL",
        "METALEARN_KFP_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    yield


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where METALEARN_SKIPS_FAIL is set, a skipped test fails the session: what it needs should have been there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(SKIPS_FAIL) and reporter and reporter.stats.get("skipped") and exitstatus == 0:
        reporter.write_line(f"error: tests were skipped, and {SKIPS_FAIL} is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
