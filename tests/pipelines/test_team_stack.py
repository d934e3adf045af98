"""Whole runs against the team's servers: PostgreSQL, S3 and MLflow behind a password, as they die and come back."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.local.stack import Stack
from tests.fault_proxy import FaultProxy

SMALL = (
    "--learner", "protonet", "--way", 3, "--shot", 1, "--query", 3, "--image-size", 16, "--train-episodes", 50,
    "--eval-episodes", 20, "--split-by", "class", "--ratios", "0.5,0.25,0.25", "--set", "backbone.width=8", "--json",
)  # fmt: skip
PATIENCE_S = 700
Command = Callable[..., list[str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


class Run:
    """`metalearn run` as a process of its own, whose steps can be waited for."""

    def __init__(self, line: list[str], environment: dict[str, str], folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "METALEARN_"))}
        self.workdir = folder
        self.errors = folder / "errors.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                line, stdout=subprocess.PIPE, stderr=errors, text=True, env={**kept, **environment, "COLUMNS": "80"}
            )

    def wait_for(self, step: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not re.search(rf"^{step}", self.errors.read_text(), re.MULTILINE):
            assert self.running, self.errors.read_text()
            assert time.monotonic() < end, self.errors.read_text()
            time.sleep(0.05)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def status(self) -> tuple[int, str, str]:
        output, _ = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, output, self.errors.read_text()

    def summary(self) -> dict[str, Any]:
        status, output, errors = self.status()
        assert status == 0, errors
        return json.loads(output)


@pytest.fixture
def start(team_stack: Stack, command: Command, images: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a run against the stack: a model and an experiment of the test's own, and where asked further options."""
    started: list[Run] = []

    def go(model: str, *more: object, folder: str = "work", **environment: str) -> Run:
        workdir = tmp_path / folder
        storage = f"{team_stack.storage}/{model}"
        options = ("--workdir", workdir, "--storage", storage, "--model-name", model, "--experiment", model, *SMALL)
        line = command("run", images, *options, *more)
        own = {"METALEARN_CACHE": str(tmp_path / folder / "cache")}
        started.append(Run(line, {**team_stack.environment(), **own, **environment}, workdir))
        return started[-1]

    yield go
    for run in started:
        run._process.kill()
        run._process.communicate()
    team_stack.up()


@pytest.fixture
def registry(team_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in team_stack.environment().items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=team_stack.tracking.uri)


def answer_to(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def bucket_of(stack: Stack, name: str = "mlflow") -> Any:
    """The bucket of MLflow's artifacts, as the MLflow server sees it; or that of the pipelines, as these do."""
    key = stack.settings.artifacts_key if name == "mlflow" else stack.settings.pipeline_key
    return boto3.resource(
        "s3",
        endpoint_url=stack.store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=key.access,
        aws_secret_access_key=key.secret,
    ).Bucket(name)


def champions(registry: Any, model: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in registry.get_registered_model(model).aliases.items()}


def test_nobody_gets_in_without_a_password_or_under_a_foreign_name(team_stack: Stack) -> None:
    url = f"{team_stack.tracking.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answer_to(url) == 401
    assert answer_to(url, Authorization="Basic cGlwZWxpbmU6d3Jvbmc=") == 401
    assert answer_to(url, Host="mlflow.example.com") == 403
    assert answer_to(f"{team_stack.tracking.uri}/health") == 200


def test_a_wrong_password_is_one_line(team_stack: Stack, start: Callable[..., Run]) -> None:
    status, _, errors = start("denied", MLFLOW_TRACKING_PASSWORD="wrong").status()
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert "401" in errors
    assert team_stack.tracking.uri in errors


def test_a_run_is_kept_on_the_servers_and_the_verbs_work_on_it(
    team_stack: Stack, start: Callable[..., Run], registry: Any, metalearn: Callable[..., Any], tmp_path: Path
) -> None:
    run = start("whole")
    summary = run.summary()
    assert summary["selected"]["model"] == "models:/whole/1"
    assert summary["tracking_uri"] == team_stack.tracking.uri
    keys = {entry.key for entry in bucket_of(team_stack).objects.all()}
    assert any(key.endswith(f"{summary['run_id']}/artifacts/report.html") for key in keys)
    assert any(key.endswith("weights.safetensors") for key in keys)
    assert not (run.workdir / "artifacts").exists()

    environment = team_stack.environment()
    elsewhere = ("--workdir", tmp_path / "another machine")
    models = metalearn("models", "--json", *elsewhere, **environment).json["models"]
    mine = next(entry for entry in models if entry["name"] == "whole")
    assert (mine["version"], mine["aliases"]) == (1, ["candidate", "champion"])
    runs = metalearn("runs", "--json", "--experiment", "whole", *elsewhere, **environment).json["runs"]
    assert [(entry["run_id"], entry["status"]) for entry in runs] == [(summary["run_id"], "FINISHED")]
    promoted = metalearn("promote", "whole@candidate", "--json", *elsewhere, **environment)
    assert promoted.status == 0, promoted.errors
    assert "champion already" in promoted.json["reasons"][0]

    secrets = [value for name, value in team_stack.settings.model_dump().items() if name.endswith("password")]
    secrets += [
        key["secret"]
        for name, key in team_stack.settings.model_dump().items()
        if name.endswith("_key") and isinstance(key, dict)
    ]
    files = [path for folder in (run.workdir, team_stack.folder) for path in folder.rglob("*") if path.is_file()]
    private = {path for path in files if path.stat().st_mode & 0o077 == 0 and path.parent == team_stack.folder}
    assert {path.name for path in private} >= {"settings.json", "environment", "s3-identities.json"}
    for path in files:
        if path not in private and "postgres" not in path.parts and "s3" not in path.parts:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path
    for entry in (*bucket_of(team_stack).objects.all(), *bucket_of(team_stack, "metalearn").objects.all()):
        content = entry.get()["Body"].read()
        assert not any(secret.encode() in content for secret in secrets), entry.key
    record = registry.get_run(summary["run_id"])
    records = registry.search_runs([record.info.experiment_id])
    assert len(records) == 2, "the run and its learner's"
    told = [registry.get_experiment(record.info.experiment_id).tags, *(dict(one.data) for one in records)]
    told.append([dict(version.tags) for version in registry.search_model_versions("name = 'whole'")])
    text = json.dumps(told, default=str)
    assert "whole" in text
    assert not any(secret in text for secret in secrets)


@pytest.mark.parametrize("order", [("s3", "mlflow", "postgres")], ids="-".join)
def test_a_run_survives_servers_that_are_killed_and_started_again(
    team_stack: Stack, start: Callable[..., Run], registry: Any, order: tuple[str, str, str]
) -> None:
    model = "-".join(order)
    run = start(model)
    for server, step in zip(order, ("meta_train", "evaluate", "register"), strict=True):
        run.wait_for(step)
        team_stack.kill(server)
        time.sleep(2)
        team_stack.start(server)
    summary = run.summary()
    assert summary["promotion"]["promoted"], summary["promotion"]["reasons"]
    assert champions(registry, model) == {"candidate": "1", "champion": "1"}
    recorded = registry.get_run(summary["run_id"])
    assert recorded.info.status == "FINISHED"
    assert "report.html" in {entry.path for entry in registry.list_artifacts(summary["run_id"])}
    assert {one.info.status for one in registry.search_runs([recorded.info.experiment_id])} == {"FINISHED"}


def test_a_server_that_stays_away_is_one_line_and_the_same_command_goes_on(
    team_stack: Stack, start: Callable[..., Run], registry: Any
) -> None:
    for server, step in (("mlflow", "meta_train"), ("s3", "evaluate")):
        run = start("away", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", AWS_MAX_ATTEMPTS="2")
        run.wait_for(step)
        team_stack.kill(server)
        status, _, errors = run.status()
        assert status == 1
        last = errors.splitlines()[-1]
        assert last.startswith("error: ")
        of_mlflow = f"{team_stack.tracking.uri} does not answer: it" in last or "connection refused" in last
        assert of_mlflow or "Could not connect to the endpoint URL" in last
        assert "Traceback" not in errors
        team_stack.start(server)
    assert start("away").summary()["promotion"]["promoted"]
    assert champions(registry, "away") == {"candidate": "1", "champion": "1"}


def test_of_two_runs_at_once_one_model_is_champion_and_a_server_that_dies_while_the_other_is_judged_moves_nothing(
    team_stack: Stack, start: Callable[..., Run], registry: Any, command: Command, tmp_path: Path
) -> None:
    runs = [start("twins", "--seed", seed, folder=f"work {seed}") for seed in (0, 1)]
    summaries = [run.summary() for run in runs]
    assert {summary["selected"]["version"] for summary in summaries} == {"1", "2"}
    for summary in summaries:
        assert registry.get_run(summary["run_id"]).info.status == "FINISHED"
        assert "report.html" in {entry.path for entry in registry.list_artifacts(summary["run_id"])}
        assert summary["promotion"]["reasons"]
    aliases = champions(registry, "twins")
    promoted = [summary["selected"]["version"] for summary in summaries if summary["promotion"]["promoted"]]
    assert promoted
    assert aliases["champion"] in promoted
    assert set(aliases) <= {"candidate", "champion", "previous_champion"}
    if len(promoted) == 2:
        assert {aliases["champion"], aliases["previous_champion"]} == {"1", "2"}

    def looks() -> dict[str, str]:
        return {tag: value for tag, value in registry.get_registered_model("twins").tags.items() if "looks" in tag}

    other, before = ({"1", "2"} - {aliases["champion"]}).pop(), looks()
    line = command("promote", f"models:/twins/{other}", "--episodes", 20_000, "--workdir", tmp_path / "by hand")
    asked = Run(line, {**team_stack.environment(), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}, tmp_path / "by hand")
    while looks() == before:
        assert asked.running, asked.errors.read_text()
    team_stack.kill("mlflow")
    status, _, errors = asked.status()
    team_stack.start("mlflow")
    assert status == 1
    assert errors.splitlines()[-1].startswith(f"error: tracking server {team_stack.tracking.uri} does not answer")
    assert errors.splitlines()[-1].endswith("nothing was moved")
    assert champions(registry, "twins") == aliases


def test_a_run_survives_five_in_a_hundred_failing_requests_to_s3(
    team_stack: Stack, start: Callable[..., Run], registry: Any, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(team_stack.store.endpoint, rate=0.05, seed=1)
    team_stack.tracking.stop()
    behind = Stack(team_stack.folder, s3_endpoint=proxy.url)
    behind.start("mlflow")
    try:
        summary = start("faults", AWS_ENDPOINT_URL=proxy.url).summary()
        assert summary["promotion"]["promoted"]
        assert champions(registry, "faults") == {"candidate": "1", "champion": "1"}
        assert proxy.requests > 40
        assert proxy.faults.total() >= 1
    finally:
        behind.tracking.stop()
