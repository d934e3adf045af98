"""What a client of `metalearn serve` waits for: Prototypical networks, conv4-64, 28×28, 5-way 1-shot, one query.

    python -m benchmarks.serving [--requests 2000]

The server is one process. One client asks again and again on one connection: with the support set each time, and with
the token of an adapted classifier. Then eight clients, each a process with a connection, ask at once for some seconds.
Clients and server share the machine.
"""

import argparse
import base64
import http.client
import io
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner

WAY, SIZE, CLIENTS, SECONDS = 5, 28, 8, 10
PATIENCE_S = 60


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--port", type=int, default=18080)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = _bundle(Path(scratch) / "bundle")
        command = [sys.executable, "-c", "from pipelines.command_line import main; main()", "serve", str(bundle)]
        server = subprocess.Popen([*command, "--port", str(asked.port)], stderr=subprocess.DEVNULL)
        try:
            _wait(asked.port)
            support, query = _examples(WAY, labelled=True), _examples(1, labelled=False)
            episode = {"inputs": [{"support": support, "query": query}]}
            token = _post(http.client.HTTPConnection("127.0.0.1", asked.port), "/adapt", {"support": support})["token"]
            adapted = f"/adapted/{token}/predict"
            print("| one query | p50, ms | p99, ms | requests/s, 8 clients |\n| --- | --- | --- | --- |")
            for name, path, body in (
                ("with its support set", "/predict", episode),
                ("of an adapted classifier", adapted, {"query": query}),
            ):
                times = 1000 * np.array(_latencies(asked.port, path, body, asked.requests))
                with ProcessPoolExecutor(CLIENTS) as clients:
                    answered = list(clients.map(_answered, *zip(*[(asked.port, path, body)] * CLIENTS, strict=True)))
                p50, p99 = np.percentile(times, [50, 99])
                print(f"| {name} | {p50:.1f} | {p99:.1f} | {sum(answered) / SECONDS:.0f} |", flush=True)
        finally:
            server.terminate()
            server.wait()


def _bundle(place: Path) -> Path:
    spec = LearnerSpec(learner="protonet")
    data = DatasetSpec(
        modality="image", example_shape=(1, SIZE, SIZE), dtype="uint8", mean=(0.5,), std=(0.3,), train_classes=100
    )
    save_bundle(place, make_learner(spec, data), spec, episode=EpisodeShape(WAY, 1, 1), lineage={"dataset_digest": ""})
    return place


def _examples(count: int, *, labelled: bool) -> list[dict[str, str]]:
    random, examples = np.random.default_rng(0), []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(file, "PNG")
        example = {"image": base64.b64encode(file.getvalue()).decode()}
        examples.append(example | ({"label": f"class {number}"} if labelled else {}))
    return examples


def _wait(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            connection.getresponse().read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def _post(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{path}: {answer.status}: {content}")
    return content


def _latencies(port: int, path: str, body: Any, requests: int) -> list[float]:
    """Return the seconds of each request, after some that are not counted."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port), []
    for number in range(requests + requests // 10):
        started = time.perf_counter()
        _post(connection, path, body)
        if number >= requests // 10:
            times.append(time.perf_counter() - started)
    return times


def _answered(port: int, path: str, body: Any) -> int:
    """Return how many requests of one client were answered in the time that there is."""
    connection, answered, end = http.client.HTTPConnection("127.0.0.1", port), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        _post(connection, path, body)
        answered += 1
    return answered


if __name__ == "__main__":
    main()
