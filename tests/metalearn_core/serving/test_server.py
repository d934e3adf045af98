"""The server's end: what is under way is answered or given up, and nothing keeps the process alive."""

import concurrent.futures
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner

GRACE_S = 2
THAT_SLEEPS = f"""
import sys, time
from fastapi import FastAPI
from metalearn_core.serving.server import listen

application = FastAPI()

@application.get("/ping")
async def ping() -> None: ...

@application.get("/sleep")
def sleep() -> None:
    time.sleep(600)

listen(application, "127.0.0.1", int(sys.argv[1]), 5.0, {GRACE_S})
"""
WITH_A_MODEL = f"""
import sys, torch
from metalearn_core.model import load_model
from metalearn_core.serving.application import make_application
from metalearn_core.serving.limits import Limits
from metalearn_core.serving.server import listen

torch.set_num_threads(1)
application = make_application(load_model(sys.argv[2]), "model", Limits(work_seconds=float(sys.argv[3])))
listen(application, "127.0.0.1", int(sys.argv[1]), 5.0, {GRACE_S})
"""


@contextmanager
def served(code: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", code, str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                requests.get(f"{address}/ping", timeout=5)
            except requests.ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            else:
                break
        yield process, address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes far longer than the grace for a hundred episodes, and far less for one."""
    spec = DatasetSpec(
        modality="vector", example_shape=(2,), dtype="float32", mean=(0.0,) * 2, std=(1.0,) * 2, train_classes=20
    )
    described = LearnerSpec(learner="maml", backbone="mlp", options={"eval_steps": 300})
    folder = tmp_path_factory.mktemp("model") / "b"
    made = make_learner(described, spec, way=2)
    save_bundle(folder, made, described, episode=EpisodeShape(2, 1, 5), lineage={"dataset_digest": "d"})
    return folder


SUPPORT = [{"label": "a", "vector": [0, 1]}, {"label": "b", "vector": [1, 0]}]
HUNDRED = {"inputs": [{"support": SUPPORT, "query": [{"vector": [0, 1]}]}] * 100}


def test_a_thread_that_still_works_does_not_keep_the_process_alive() -> None:
    with served(THAT_SLEEPS) as (process, address), concurrent.futures.ThreadPoolExecutor(1) as clients:
        asked = clients.submit(requests.get, f"{address}/sleep", timeout=60)
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - started > GRACE_S - 0.5
        assert asked.exception() or asked.result().status_code == 500


def test_episodes_that_are_not_answered_when_the_server_ends_are_given_up(slow_model: Path) -> None:
    with (
        served(WITH_A_MODEL, slow_model, 60) as (process, address),
        concurrent.futures.ThreadPoolExecutor(1) as clients,
    ):
        asked = clients.submit(requests.post, f"{address}/predict", json=HUNDRED, timeout=60)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
        assert (answer.status_code, answer.json()) == (503, {"error": "the server is ending: send the request again"})
        assert process.wait(timeout=30) == 0


def test_a_request_is_worked_on_for_so_long_and_no_longer(slow_model: Path) -> None:
    with served(WITH_A_MODEL, slow_model, 1) as (_, address):
        answer = requests.post(f"{address}/predict", json=HUNDRED, timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"] == "the answer takes longer than 1 seconds: send fewer episodes at once"
        one = requests.post(f"{address}/predict", json={"inputs": HUNDRED["inputs"][:1]}, timeout=60)
        assert one.status_code == 200
