"""What all tests share: no skip goes unseen where everything that tests need is installed."""

import os
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


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on, or writes to, what the person who runs it has set up."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "METALEARN_HOME", "METALEARN_EVENTS", "METALEARN_OWNER"):
        monkeypatch.delenv(name, raising=False)
    yield


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where METALEARN_SKIPS_FAIL is set, a skipped test fails the session: what it needs should have been there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(SKIPS_FAIL) and reporter and reporter.stats.get("skipped") and exitstatus == 0:
        reporter.write_line(f"error: tests were skipped, and {SKIPS_FAIL} is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
