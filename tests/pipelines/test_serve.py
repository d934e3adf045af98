"""`metalearn serve` as clients meet it: good requests, wrong ones, and those that never end."""

import base64
import concurrent.futures
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.model import load_model

SIZE = 28
RANDOM = np.random.default_rng(0)
CLASSES = ("cat", "dog", "eel")
TIMEOUT = 2.0
METALEARN = [sys.executable, "-c", "from pipelines.command_line import main; main()"]


def encoded(pixels: Any, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


PICTURES = [RANDOM.integers(0, 256, (SIZE, SIZE), dtype=np.uint8) for _ in range(8)]
IMAGES = [encoded(picture) for picture in PICTURES]
SUPPORT = [{"label": CLASSES[number % 3], "image": IMAGES[number]} for number in range(6)]
QUERY = [{"image": IMAGES[6]}, {"image": IMAGES[7]}]
EPISODE = {"support": SUPPORT, "query": QUERY}


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    bundle: Path

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{self.port}{path}", json=body, timeout=30, **options)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *options: str, learner: str = "protonet", vectors: bool = False) -> Server:
    image = DatasetSpec(
        modality="image", example_shape=(1, SIZE, SIZE), dtype="uint8", mean=(0.4,), std=(0.3,), train_classes=20
    )
    vector = DatasetSpec(
        modality="vector", example_shape=(4,), dtype="float32", mean=(0.0,) * 4, std=(1.0,) * 4, train_classes=20
    )
    spec = LearnerSpec(learner=learner, backbone="mlp" if vectors else "conv4")
    made = make_learner(spec, vector if vectors else image, way=3)
    save_bundle(folder / "bundle", made, spec, episode=EpisodeShape(3, 1, 5), lineage={"dataset_digest": "d"})
    return serve(folder / "bundle", *options)


def serve(bundle: Path, *options: str) -> Server:
    port = free_port()
    command = [*METALEARN, "serve", str(bundle), "--port", str(port)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    server = Server(process, port, bundle)
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(process.stderr.read() if process.stderr else "")
        try:
            server.get("/ping")
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return server
    raise AssertionError("the server does not answer")


def end(server: Server) -> str:
    server.process.send_signal(signal.SIGINT)
    _, errors = server.process.communicate(timeout=30)
    assert (server.process.returncode, "error" in errors) == (0, False), errors
    return errors


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start(tmp_path_factory.mktemp("serve"), "--timeout", str(TIMEOUT), "--body-mb", "2")
    yield started
    end(started)


def test_an_answer_is_what_the_model_says(server: Server) -> None:
    answer = server.post("/predict", {"inputs": [EPISODE]})
    assert answer.status_code == 200
    expected = load_model(server.bundle).predict(
        np.stack(PICTURES[:6])[:, None], [example["label"] for example in SUPPORT], np.stack(PICTURES[6:])[:, None]
    )
    found = answer.json()["predictions"][0]["predictions"]
    assert [one["label"] for one in found] == expected.labels
    probabilities = [[one["probabilities"][name] for name in CLASSES] for one in found]
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)


def test_an_answer_names_the_nearest_support_examples(server: Server) -> None:
    alike = {"support": SUPPORT, "query": [{"image": IMAGES[4]}, *QUERY]}
    found = server.post("/predict", {"inputs": [alike]}).json()["predictions"][0]["predictions"]
    assert found[0]["nearest"][0] == {"example": 4, "label": SUPPORT[4]["label"], "distance": 0}
    classifier = load_model(server.bundle).adapt(np.stack(PICTURES[:6])[:, None], [one["label"] for one in SUPPORT])
    expected = classifier.nearest(np.stack([PICTURES[4], *PICTURES[6:]])[:, None])
    for one, places, distances in zip(found, expected.nearest, expected.distances, strict=True):
        assert [near["example"] for near in one["nearest"]] == places.tolist()
        assert [near["label"] for near in one["nearest"]] == [SUPPORT[place]["label"] for place in places]
        np.testing.assert_allclose([near["distance"] for near in one["nearest"]], distances, atol=1e-6)


def test_episodes_of_a_request_are_answered_apart(server: Server) -> None:
    other = {"support": SUPPORT[:2], "query": QUERY[:1]}
    both = server.post("/predict", {"inputs": [EPISODE, other]}).json()["predictions"]
    alone = server.post("/predict", {"inputs": [other]}).json()["predictions"]
    assert len(both[0]["predictions"]) == 2
    assert both[1] == alone[0]


def test_a_support_set_is_adapted_to_once_and_asked_often(server: Server) -> None:
    adapted = server.post("/adapt", {"support": SUPPORT}).json()
    assert adapted["classes"] == list(CLASSES)
    whole = server.post("/predict", {"inputs": [EPISODE]}).json()["predictions"][0]
    for _ in range(2):
        assert server.post(f"/adapted/{adapted['token']}/predict", {"query": QUERY}).json() == whole
    assert server.post("/adapt", {"support": SUPPORT}).json()["token"] == adapted["token"]
    assert server.post("/adapt", {"support": SUPPORT[:3]}).json()["token"] != adapted["token"]


def test_a_bundle_with_a_support_set_answers_queries_from_the_start(server: Server, tmp_path: Path) -> None:
    assert server.get("/health").json()["adapted"] is None
    labels = [example["label"] for example in SUPPORT]
    classifier = load_model(server.bundle).adapt(np.stack(PICTURES[:6])[:, None], labels)
    classifier.save(tmp_path / "cats[b]")
    own = serve(tmp_path / "cats[b]", "--kept-mb", "0")
    try:
        adapted = own.get("/health").json()["adapted"]
        assert adapted["classes"] == list(CLASSES)
        assert own.post("/adapt", {"support": SUPPORT[:3]}).status_code == 200
        answer = own.post(f"/adapted/{adapted['token']}/predict", {"query": QUERY}).json()
        assert answer == server.post("/predict", {"inputs": [EPISODE]}).json()["predictions"][0]
    finally:
        said = end(own)
    assert f"{own.bundle}: its support set is adapted to" in said
    assert f"/adapted/{adapted['token']}/predict" in said


def test_an_unknown_token_says_what_to_do(server: Server) -> None:
    answer = server.post("/adapted/abc/predict", {"query": QUERY})
    assert answer.status_code == 404
    assert "send its support set to /adapt again" in answer.json()["error"]


def test_health_metrics_and_the_description_are_there(server: Server) -> None:
    health = server.get("/health").json()
    assert health["status"] == "ok"
    assert health["model"]["learner"] == "protonet"
    assert health["model"]["way"] is None
    server.post("/predict", {"inputs": [EPISODE]})
    assert server.post("/predict", {"inputs": [], "much": "x" * 3_000_000}).status_code == 413
    text = server.get("/metrics").text
    assert 'metalearn_requests_total{path="other",status="413"}' in text
    assert 'metalearn_requests_total{path="/predict",status="200"}' in text
    assert "metalearn_request_seconds_bucket" in text
    document = server.get("/openapi.json").json()
    assert {"/predict", "/adapt", "/adapted/{token}/predict", "/health"} <= set(document["paths"])
    announced = {
        status for path in document["paths"].values() for call in path.values() for status in call["responses"]
    }
    assert "422" not in announced and {"200", "400", "404", "408", "413", "429"} <= announced


def bomb(side: int) -> str:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def with_support(example: Any) -> dict[str, Any]:
    return {"inputs": [{"support": [*SUPPORT, example], "query": QUERY}]}


WRONG: list[tuple[Any, str]] = [
    ({"inputs": [{"support": SUPPORT[:1], "query": QUERY}]}, "at least 2 classes"),
    ({"inputs": [{"support": [], "query": QUERY}]}, "support"),
    ({"inputs": [{"support": SUPPORT, "query": []}]}, "query"),
    ({"inputs": []}, "inputs"),
    ({}, "inputs: field required"),
    ([1, 2], "body"),
    (with_support({"image": IMAGES[0]}), "inputs[0].support[6].label: field required"),
    (with_support({"label": "cat", "image": "%%%"}), "inputs[0].support[6].image: it is not base64"),
    (with_support({"label": "cat", "image": "aGVsbG8="}), "support[6].image: not an image"),
    (with_support({"label": "cat", "image": IMAGES[0][:60]}), "support[6].image"),
    (with_support({"label": "cat", "image": bomb(12_000)}), "megapixels"),
    (with_support({"label": "cat", "image": bomb(4100)}), "an image has at most 16 megapixels"),
    (with_support({"label": "cat", "image": "é"}), "inputs[0].support[6].image: it is not base64"),
    (with_support({"label": "\ud800", "image": IMAGES[0]}), "inputs[0].support[6].label"),
    (with_support({"label": "cat", "\ud800": IMAGES[0]}), "inputs[0].support[6]"),
    (with_support({"label": "x" * 201, "image": IMAGES[0]}), "inputs[0].support[6].label: string should have at most"),
    ({"inputs": [{"support": [{"label": "cat"}] * 700, "query": []}] * 3}, "at most 2,000 examples in all"),
    (with_support({"label": "cat", "vector": [1.0]}), "this model takes images"),
    (with_support({"label": "cat", "picture": IMAGES[0]}), "picture: extra inputs are not permitted"),
    ({"inputs": [{"support": [{"label": "cat"}] * 2000, "query": QUERY}]}, "at most 1000 items"),
]


@pytest.mark.parametrize(("body", "words"), WRONG, ids=range(len(WRONG)))
def test_a_request_that_makes_no_sense_is_one_clear_line(server: Server, body: Any, words: str) -> None:
    answer = server.post("/predict", body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"inputs": NaN}'])
def test_a_body_that_is_not_json_is_one_clear_line(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = requests.post(f"http://127.0.0.1:{server.port}/predict", data=body, headers=headers, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_path_that_is_not_there_and_a_wrong_method(server: Server) -> None:
    assert server.get("/nowhere").status_code == 404
    assert server.get("/predict").status_code == 405


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    vectors = start(tmp_path, vectors=True)
    try:
        good = {"support": [{"label": name, "vector": [1, 2, 3, 4]} for name in "ab"], "query": [{"vector": [0] * 4}]}
        assert vectors.post("/predict", {"inputs": [good]}).status_code == 200
        for values in ([float("nan")] * 4, [1e39] * 4, [1, 2, 3]):
            text = json.dumps({"inputs": [{**good, "query": [{"vector": values}]}]})
            answer = requests.post(
                f"http://127.0.0.1:{vectors.port}/predict",
                data=text,
                headers={"content-type": "application/json"},
                timeout=30,
            )
            assert answer.status_code == 400, answer.text
            assert "query" in answer.json()["error"]
    finally:
        end(vectors)


def test_a_learner_of_fixed_way_says_how_many_classes_it_takes(tmp_path: Path) -> None:
    maml = start(tmp_path, learner="maml")
    try:
        answer = maml.post("/predict", {"inputs": [{"support": SUPPORT[:2], "query": QUERY}]})
        assert answer.status_code == 400
        assert "exactly 3 classes, got 2" in answer.json()["error"]
    finally:
        end(maml)


HEAD = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_body_that_is_announced_to_be_too_large_is_refused_before_it_is_there(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(f"{HEAD}content-length: 1000000000\r\n\r\n".encode())
        assert b" 413 " in connection.recv(65536)


@pytest.mark.parametrize("chunked", [True, False])
def test_who_sends_all_of_a_body_before_reading_is_told_that_it_is_too_large(server: Server, chunked: bool) -> None:
    before, part, parts = server.megabytes(), b"x" * 2**20, 40
    with server.connect() as connection:
        length = "transfer-encoding: chunked" if chunked else f"content-length: {parts * len(part)}"
        connection.sendall(f"{HEAD}{length}\r\n\r\n".encode())
        for _ in range(parts):
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = connection.recv(65536)
    assert b" 413 " in answer
    assert b"the body is larger than 2 MB" in answer
    assert server.megabytes() < before + 20


def test_a_body_that_never_ends_is_not_read_for_ever(server: Server) -> None:
    before, chunk = server.megabytes(), b"x" * 2**20
    with server.connect() as connection:
        connection.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    assert server.get("/health").status_code == 200
    assert server.megabytes() < before + 20


def test_a_body_that_stops_half_way_is_given_up(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(f"{HEAD}content-length: 1000\r\n\r\n{{".encode())
        started = time.monotonic()
        answer = connection.recv(65536)
        assert b" 408 " in answer
        assert time.monotonic() - started < 10 * TIMEOUT


def test_a_head_that_never_ends_is_given_up(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /predict HTT")
        assert connection.recv(65536) == b""
    with server.connect() as silent:
        assert silent.recv(65536) == b""


def test_a_second_request_that_never_ends_is_given_up(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in connection.recv(65536)
        connection.sendall(b"GET /pi")
        started = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - started < 10 * TIMEOUT


def test_a_client_that_goes_away_leaves_no_trace(server: Server) -> None:
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(f"{HEAD}content-length: 1000\r\n\r\nhalf".encode())
    assert server.post("/predict", {"inputs": [EPISODE]}).status_code == 200


def test_many_good_and_bad_requests_at_once_end_in_no_error_of_the_server(server: Server) -> None:
    bodies = [{"inputs": [EPISODE]}, *(body for body, _ in WRONG[:-1])]

    def ask(number: int) -> int:
        kind = random.Random(number).randrange(len(bodies) + 2)
        if kind >= len(bodies):
            body = f"/adapt {number}"
            return server.post("/adapt", {"support": [*SUPPORT, {**SUPPORT[0], "label": body}]}).status_code
        return server.post("/predict", bodies[kind]).status_code

    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        first = list(clients.map(ask, range(200)))
        settled = server.megabytes()
        statuses = first + list(clients.map(ask, range(200, 1000)))
    assert set(statuses) == {200, 400}
    assert statuses.count(200) > 100
    assert server.megabytes() < settled + 40


def test_kept_classifiers_make_room(tmp_path: Path) -> None:
    small = start(tmp_path, "--kept-mb", "0.04")
    try:
        tokens = []
        for name in "abcdefgh":
            support = [*SUPPORT, {"label": name, "image": IMAGES[0]}]
            tokens.append(small.post("/adapt", {"support": support}).json()["token"])
        assert small.post(f"/adapted/{tokens[0]}/predict", {"query": QUERY}).status_code == 404
        assert small.post(f"/adapted/{tokens[-1]}/predict", {"query": QUERY}).status_code == 200
    finally:
        end(small)


def test_a_port_that_is_taken_and_a_model_that_is_not_there(server: Server, tmp_path: Path) -> None:
    for arguments, words in (
        ([str(server.bundle), "--port", str(server.port)], "address already in use"),
        ([str(tmp_path / "nothing"), "--port", str(free_port())], "there is no such folder"),
    ):
        command = [*METALEARN, "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
        assert done.returncode in {1, 2}
        assert words in done.stderr.lower()
        assert done.stderr.count("\n") == 1
