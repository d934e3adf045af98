"""Every step in a container: the same results, no failure taken for success, and nothing left behind.

A container engine (DOCKER_HOST, or the usual sockets) and the image of `make image` are needed, and skipped without.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from components.image import IMAGE, PACKAGES, repository_address
from metalearn_core.errors import MetalearnError
from metalearn_core.events import EVENTS_VARIABLE
from pipelines.container_engine import run_to_its_end
from pipelines.containers import (
    HOST_VARIABLE,
    OWNER_LABEL,
    RUN_LABEL,
    Engine,
    find_engine,
    find_image,
    listed_containers,
)

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = (
    "--learner", "protonet", "--way", 3, "--shot", 1, "--query", 3, "--image-size", 16, "--train-episodes", 60,
    "--eval-episodes", 20, "--split-by", "class", "--ratios", "0.5,0.25,0.25", "--set", "backbone.width=8",
    "--checkpoint-seconds", 0, "--json",
)  # fmt: skip
STEPS = 9
MARKER = "marker-of-a-secret-4711"
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "infra", *PACKAGES)
Run = Callable[..., Any]
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return find_engine()
    except MetalearnError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=engine.address, timeout=600)
    yield found
    found.close()


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    try:
        return find_image(engine, IMAGE)
    except MetalearnError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path]) -> Path:
    return draw_classes(tmp_path_factory.mktemp("source") / "images")


class Containers(threading.Thread):
    """Notes the containers of runs below a folder that the engine has, by their ids, until it is stopped."""

    def __init__(self, client: Any, folder: Path) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, str] = {}
        self._client, self._folder, self._ended = client, str(folder), threading.Event()

    def now(self) -> list[dict]:
        listed = listed_containers(self._client, RUN_LABEL)
        return [entry for entry in listed if self._folder in entry["Labels"][OWNER_LABEL]]

    def run(self) -> None:
        while not self._ended.wait(0.1):
            self.seen |= {entry["Id"]: entry["Labels"][RUN_LABEL] for entry in self.now()}

    def stop(self) -> dict[str, str]:
        self._ended.set()
        self.join()
        return self.seen


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, metalearn: Run, images: Path) -> dict:
    answer = metalearn("run", images, "--workdir", tmp_path_factory.mktemp("local"), *ARGUMENTS)
    assert answer.status == 0, answer.errors
    return answer.json


def figures(summary: dict) -> dict:
    """What a run found, without where and when."""
    elsewhere = {"bundle", "bundle_digest", "train_seconds", "adaptation_ms"}  # a bundle holds its lineage
    elsewhere |= {"peak_memory_bytes", "peak_gpu_memory_bytes"}
    return {
        "dataset": {name: value for name, value in summary["dataset"].items() if name != "uri"},
        "results": [
            {name: value for name, value in result.items() if name not in elsewhere} for result in summary["results"]
        ],
        "weights": [
            hashlib.sha256((Path(result["bundle"]) / "weights.safetensors").read_bytes()).hexdigest()
            for result in summary["results"]
        ],
        "promotion": summary["promotion"],
    }


@pytest.mark.slow
def test_a_run_in_containers_comes_to_what_a_local_one_comes_to(
    client: Any, image: str, local: dict, metalearn: Run, images: Path, tmp_path: Path
) -> None:
    containers = Containers(client, tmp_path)
    containers.start()
    secrets = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": MARKER,
        "MLFLOW_TRACKING_PASSWORD": MARKER,
        "METALEARN_WEBHOOK_URL": f"http://127.0.0.1:1/{MARKER}",
    }
    answer = metalearn("run", images, "--workdir", tmp_path, "--engine", "container", *ARGUMENTS, **secrets)
    seen = containers.stop()
    assert answer.status == 0, answer.errors
    assert MARKER not in answer.output + answer.errors
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]  # logs, artifacts and the tracking database
    assert len(kept) > 20
    assert [path for path in kept if MARKER.encode() in path.read_bytes()] == []
    assert figures(answer.json) == figures(local)
    assert len(seen) == STEPS
    assert set(seen.values()) == {path.name for path in (tmp_path / "runs").iterdir()}
    assert containers.now() == []
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert kept == {"artifacts", "container", "mlflow.db", "runs"}
    from mlflow import MlflowClient

    parent = MlflowClient(tracking_uri=answer.json["tracking_uri"]).get_run(answer.json["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["metalearn.image"] == IMAGE


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_killed_with_its_command_or_its_container_goes_on_to_the_same_weights(
    client: Any, image: str, local: dict, metalearn: Run, command: Command, images: Path, tmp_path: Path
) -> None:
    arguments = command("run", images, "--workdir", tmp_path, "--engine", "container", *ARGUMENTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METALEARN_")}
    containers = Containers(client, tmp_path)

    def started() -> subprocess.Popen[str]:
        """Start the command, and return when its training has written a checkpoint that was not there before."""
        before = set(tmp_path.glob("container/checkpoints/*/*.json"))
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        wait_for(lambda: set(tmp_path.glob("container/checkpoints/*/*.json")) - before or process.poll() is not None)
        assert process.poll() is None
        return process

    process = started()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: all(entry["State"] == "exited" for entry in containers.now()), 20)
    assert len(containers.now()) == 1

    process = started()
    [training] = containers.now()  # the one that the killed run left is removed
    client.api.kill(training["Id"], "SIGKILL")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "error: meta_train: its container was killed" in errors.splitlines()[-1]

    process = started()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert containers.now() == []

    answer = metalearn("run", images, "--workdir", tmp_path, "--engine", "container", *ARGUMENTS)
    assert answer.status == 0, answer.errors
    assert figures(answer.json)["weights"] == figures(local)["weights"]
    told = [file.read_text().count("goes on from training episode") for file in tmp_path.glob("runs/*/events.jsonl")]
    assert sorted(told) == [0, 1, 1, 1], "each run but the first took up a checkpoint"


@pytest.mark.slow
def test_a_step_that_fails_in_its_container_is_the_commands_line(
    image: str, metalearn: Run, images: Path, tmp_path: Path
) -> None:
    more = ("--way", 7, "--learner", "protonet", "--engine", "container", "--split-by", "class", "--image-size", 16)
    answer = metalearn("run", images, "--workdir", tmp_path, *more)
    assert answer.status == 1
    assert answer.errors.splitlines()[-1].startswith("error: validate_episodes: dataset ")


@pytest.mark.slow
def test_an_image_without_the_package_is_told_by_its_last_lines(
    client: Any, image: str, metalearn: Run, tmp_path: Path
) -> None:
    base = "docker.io/library/python:3.11-slim-bookworm"
    if not any(base in found.tags for found in client.images.list()):
        pytest.skip(f"{base} is not at the engine")
    answer = metalearn("run", "--workdir", tmp_path, "--engine", "container", "--image", base)
    assert answer.status == 1
    line = answer.errors.splitlines()[-1]
    assert line.startswith("error: open_run: its container ended with status 1")
    assert "No module named" in line


@pytest.fixture
def run_here(client: Any, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Run a shell command as KFP would run the step `promote`."""
    (tmp_path / "events.jsonl").touch()
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    volumes = {str(tmp_path): {"bind": str(tmp_path), "mode": "rw"}}

    def run(script: str) -> int:
        command = ["sh", "-c", script, "--function_to_execute", "promote"]
        return run_to_its_end(client, image, command, volumes, user="0:0", network_mode="host")

    return run


def errors_of(tmp_path: Path) -> list[str]:
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    return [f"{event['step']}: {event['text']}" for event in events if event["kind"] == "error"]


@pytest.mark.slow
def test_a_container_that_ends_at_once_is_judged_by_how_it_ended(
    run_here: Callable[[str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = f"""echo '{{"kind": "done", "step": "promote"}}' >>{tmp_path}/events.jsonl; echo well done"""
    for _ in range(3):
        assert run_here("exit 3") == 3
        assert run_here(done) == 0
    assert capsys.readouterr().out == "well done\n" * 3
    assert errors_of(tmp_path) == ["promote: its container ended with status 3; it printed nothing"] * 3


@pytest.mark.slow
def test_a_container_that_ends_well_without_its_step_has_failed(run_here: Callable[[str], int], tmp_path: Path) -> None:
    assert run_here("echo one; echo two; true") != 0
    assert errors_of(tmp_path) == ["promote: its container ended without doing the step; its last lines: one / two"]


@pytest.mark.slow
def test_a_container_that_cannot_start_has_failed(
    client: Any, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events.jsonl").touch()
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    assert run_to_its_end(client, image, ["no-such-program"], {}, network_mode="host") != 0
    [line] = errors_of(tmp_path)
    assert "no-such-program" in line


@pytest.mark.slow
def test_the_image_runs_as_nobody_in_particular_on_a_root_that_cannot_be_written(client: Any, image: str) -> None:
    code = """
import getpass, os, pathlib, shutil, importlib.util, matplotlib.pyplot, torch, mlflow, metalearn_core.version
assert os.getuid() == 10001 and os.getgid() == 10001, os.getuid()
assert not any(map(shutil.which, ('gcc', 'cc', 'make', 'pip', 'pip3', 'git'))), 'build tools'
assert not any(map(importlib.util.find_spec, ('pip', 'ensurepip', 'wheel'))), 'installers'
assert not list(pathlib.Path('/').glob('root/.cache/*')) and not list(pathlib.Path('/build').glob('*'))
assert pathlib.Path(metalearn_core.version.__file__).parent.joinpath('__pycache__').is_dir()
matplotlib.pyplot.plot([1]); matplotlib.pyplot.savefig('/tmp/plot.png')
try:
    pathlib.Path('/opt/code/new').touch()
except OSError as error:
    version = metalearn_core.version
    print(version.source_digest(), version.git_commit(), getpass.getuser(), error.strerror)
"""
    output = client.containers.run(
        image, ["python", "-W", "error::UserWarning", "-c", code], read_only=True, tmpfs={"/tmp": ""},
        network_mode="host", remove=True, stderr=True,
    ).decode()  # fmt: skip
    from metalearn_core.version import source_digest

    digest, commit, user, *refused = output.split()
    labels = client.images.get(image).labels
    assert (digest, user, refused) == (source_digest(), "metalearn", ["Read-only", "file", "system"])
    assert commit == labels["org.opencontainers.image.revision"]
    assert labels["org.opencontainers.image.version"] == IMAGE.partition(":")[2].partition("-")[0]
    assert labels["org.opencontainers.image.source"] == repository_address()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_holds_the_uncommitted_change_and_no_secret_of_its_build(
    engine: Engine, client: Any, image: str, tmp_path: Path
) -> None:
    marker, plain = MARKER, "xyzzy-plain-4711"
    for name in NEEDED:
        place = tmp_path / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, place)
    remote = f"https://me:{marker}@git.example/team/metalearn.git"
    for arguments in (["init", "--quiet"], ["add", "--all"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    (tmp_path / "metalearn_core" / "uncommitted.py").write_text(f"# {plain}\n")
    secrets = {
        "PIP_TRUSTED_HOST": f"{marker}.example",
        "AWS_SECRET_ACCESS_KEY": marker,
        "MLFLOW_TRACKING_PASSWORD": marker,
    }
    environment = {**os.environ, **secrets, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    built = subprocess.run(
        [tmp_path / "infra/images/build"], capture_output=True, text=True, env=environment, check=False, timeout=800
    )
    assert built.returncode == 0, built.stderr
    name = built.stdout.splitlines()[-1].removeprefix("built ")
    assert name != IMAGE
    assert " " not in name, "a name by a commit that is not all that is in it"
    made = client.images.get(find_image(engine, name))
    try:
        listed = client.containers.run(
            made.id, ["ls", "/opt/code/metalearn_core/uncommitted.py"], network_mode="host", remove=True
        )
        assert b"uncommitted.py" in listed
        assert made.labels["org.opencontainers.image.source"] == "https://git.example/team/metalearn.git"
        assert made.labels["org.opencontainers.image.revision"].endswith(("-dirty", "unknown"))
        assert marker not in json.dumps([made.attrs, made.history()])
        last, layers_are_readable = b"", False
        for chunk in made.save():
            assert marker.encode() not in last + chunk
            layers_are_readable |= plain.encode() in last + chunk
            last = chunk[-len(marker) :]
        assert layers_are_readable
    finally:
        for tag in made.tags:
            client.images.remove(tag)
    assert marker not in built.stdout + built.stderr


def refused(answer: Any, status: int, *words: str) -> None:
    line = answer.errors.strip().splitlines()[-1]
    assert answer.status == status, answer.errors
    assert line.startswith("error: ")
    assert "Traceback" not in answer.errors
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("unix:///nowhere/engine.sock", ["unix:///nowhere/engine.sock", "there is no such socket"]),
        ("tcp://127.0.0.1:1", ["tcp://127.0.0.1:1", "connection refused"]),
        ("tcp://no-such-host.invalid:2375", ["no-such-host.invalid", "not known"]),
        ("engine", ["engine", HOST_VARIABLE]),
    ],
)
def test_an_engine_that_is_not_there_is_told_in_one_line(
    metalearn: Run, tmp_path: Path, address: str, words: list[str]
) -> None:
    answer = metalearn("run", "--engine", "container", "--workdir", tmp_path / "work", DOCKER_HOST=address)
    refused(answer, 1, *words)
    assert not (tmp_path / "work").exists()


def test_an_engine_that_does_not_answer_is_told_in_one_line(metalearn: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        answer = metalearn("run", "--engine", "container", "--workdir", tmp_path, DOCKER_HOST=address)
    refused(answer, 1, address, "no answer in time")


@pytest.mark.slow
def test_an_image_that_is_not_there_is_told_with_what_makes_it(engine: Engine, metalearn: Run, tmp_path: Path) -> None:
    here = ("run", "--engine", "container", "--workdir", tmp_path)
    refused(metalearn(*here, "--image", "metalearn-python:0-none"), 1, "metalearn-python:0-none", "make image")
    refused(metalearn(*here, "--image", "127.0.0.1:1/metalearn-python:0-none"), 1, "127.0.0.1:1", "pulled")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "container", "--gpus", 99], ["--gpus 99", "this machine has"]),
        (["--engine", "container", "--gpus", 1, "--device", "cpu"], ["--gpus 1", "--device cpu"]),
        (["--gpus", 1], ["--gpus", "--engine container"]),
        (["--engine", "cluster"], ["--engine", "cluster", "container"]),
        (["--engine", "container", "--image", "metalearn-python:latest"], ["metalearn-python:latest", "digest"]),
        (["--engine", "container", "--image", "metalearn-python"], ["metalearn-python", "digest"]),
        (["--engine", "container", "--image", "Not An Image"], ["--image", "Not An Image"]),
    ],
)
def test_options_of_containers_are_refused_before_any_work(
    metalearn: Run, tmp_path: Path, arguments: list[object], words: list[str]
) -> None:
    refused(metalearn("run", *arguments, "--workdir", tmp_path / "work"), 2, *words)
    assert not (tmp_path / "work").exists()


def test_a_compiled_pipeline_has_the_image_that_was_asked_for(metalearn: Run, tmp_path: Path) -> None:
    name = f"registry.example:5000/team/metalearn-python@sha256:{'0' * 64}"
    answer = metalearn("compile", "-o", tmp_path / "pipeline.yaml", METALEARN_IMAGE=name)
    assert answer.status == 0, answer.errors
    assert (tmp_path / "pipeline.yaml").read_text().count(f"image: {name}") == STEPS
    refused(metalearn("compile", "-o", tmp_path / "other.yaml", "--image", "x:latest"), 2, "x:latest")
