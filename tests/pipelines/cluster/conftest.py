"""A server that keeps to KFP's API, and `metalearn submit` against it, in this process."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.command_line import main
from tests.pipelines.cluster.contract import Contract
from tests.pipelines.cluster.kfp_server import Cluster, KfpServer
from tests.pipelines.conftest import Answer

SWAGGER = "METALEARN_KFP_SWAGGER"
IMAGE = "registry.example/metalearn:1"
TRACKING = "http://mlflow.invalid:5000"
STORAGE = "s3://bucket/metalearn"


@pytest.fixture(scope="session")
def contract() -> Contract:
    path = os.environ.get(SWAGGER)
    if not path:
        pytest.skip(f"{SWAGGER} does not say where the OpenAPI document of Kubeflow Pipelines is")
    return Contract(Path(path))


@pytest.fixture
def cluster(contract: Contract) -> Cluster:
    return Cluster(contract)


@pytest.fixture
def server(cluster: Cluster) -> Iterator[KfpServer]:
    """The server; at the end of a test, nothing may have been said that KFP's document does not have."""
    serving = KfpServer(cluster)
    thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()
    assert cluster.violations == []


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds credentials or a home of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("METALEARN_KFP_", "KF_PIPELINES_")) and name != SWAGGER:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def submit(
    server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    def run(
        *options: object,
        host: str | None = server.host,
        storage: str | None = STORAGE,
        tracking_uri: str | None = TRACKING,
        **environment: str,
    ) -> Answer:
        given = {"--host": host, "--storage": storage, "--tracking-uri": tracking_uri}
        named = [str(option).partition("=")[0] for option in options]
        line = ["metalearn", "submit", *(str(option) for option in options)]
        line += [part for name, value in given.items() if value and name not in named for part in (name, value)]
        handler = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", line)
            patch.setenv("COLUMNS", "80")
            patch.setenv("METALEARN_IMAGE", IMAGE)
            for name, value in environment.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        signal.signal(signal.SIGTERM, handler)
        output, errors = capsys.readouterr()
        return Answer(int(ended.value.code or 0), output, errors)

    return run


@pytest.fixture
def refused() -> Callable[..., str]:
    def check(answer: Any, status: int, *words: str) -> str:
        """An answer of one line of error, which holds the words."""
        assert answer.status == status, answer
        assert "Traceback" not in answer.errors
        *_, last = answer.errors.strip().splitlines()
        assert last.startswith("error: ")
        for word in words:
            assert word in last, last
        return last

    return check
