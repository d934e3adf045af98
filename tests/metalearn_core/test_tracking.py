import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import metric_buffer, tracking
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.tracking_server import lock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uri(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return database


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, str]]]:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("METALEARN_EVENTS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not _healthy(port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def manifest() -> Manifest:
    entries = tuple(
        ClassEntry(
            id=number, name=f"c{number}", domain="d", split=split, count=20, shard=0, row_group=number,
            rotations=(0,), digest=f"{number:064x}",
        )
        for number, split in enumerate(("train", "train", "test"))
    )  # fmt: skip
    spec = DatasetSpec(
        modality="image", example_shape=(1, 28, 28), dtype="uint8", mean=(0.5,), std=(0.5,), train_classes=2
    )
    return Manifest(digest="ab" * 16, source="x", spec=spec, options=BuildOptions(), classes=entries, shards=())


def test_two_processes_that_start_at_once_in_a_fresh_folder_both_get_the_experiment(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from metalearn_core.tracking import prepare\n"
        "from metalearn_core.tracking_server import experiment_id\n"
        "prepare(sys.argv[1], Path(sys.argv[2]), 'few-shot'); print(experiment_id('few-shot', uri=sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db", str(tmp_path / "new" / "artifacts")]
    processes = [
        subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0] == results[1] == ("1\n", "")


@pytest.mark.parametrize("size", [1, 200_000, 500_000])
def test_a_process_killed_while_it_makes_the_database_costs_nothing(tmp_path: Path, size: int) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = "import sys; from metalearn_core.tracking import prepare; prepare(sys.argv[1], None, 'few-shot')"
    process = subprocess.Popen([sys.executable, "-c", code, uri], cwd=ROOT)
    while not any(path.stat().st_size >= size for path in tmp_path.glob(".mlflow.db.*.tmp")):
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    tracking.prepare(uri, None, "few-shot")
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name("few-shot") is not None
    assert not list(tmp_path.glob(".mlflow.db.*.tmp*"))


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("INSERT INTO alembic_version VALUES ('of another program')")
    before = database.read_bytes()
    with pytest.raises(MetalearnError, match="cannot be brought to the schema of the installed MLflow"):
        tracking.prepare(f"sqlite:///{database}")
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["mlflow.db"]


def test_who_only_reads_makes_no_experiment(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.prepare(uri)
    found = MlflowClient(tracking_uri=uri).search_experiments()
    assert "few-shot" not in {experiment.name for experiment in found}


def test_artifacts_of_the_experiment_lie_in_the_given_folder(uri: str, tmp_path: Path) -> None:
    run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "artifacts", "run")
    (tmp_path / "report.html").write_text("<p>report")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    tracking.log_artifact(run_id, tmp_path / "report.html")
    tracking.log_artifact(run_id, tmp_path / "folder", "below")
    root = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    assert [path.relative_to(root).parts[2:] for path in sorted(root.rglob("*.*"))] == [
        ("artifacts", "below", "folder", "a.txt"),
        ("artifacts", "report.html"),
    ]


def test_an_artifact_that_is_not_there_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(MetalearnError, match=r"there is no .*missing\.html"):
        tracking.log_artifact("any", tmp_path / "missing.html")


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "is silent"])
def test_a_server_that_does_not_answer_is_one_line_within_ten_seconds(answers: bool) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if answers:
            listening.listen()
        start = time.monotonic()
        with pytest.raises(MetalearnError, match=r"tracking server http://127.0.0.1:.* does not answer") as caught:
            tracking.prepare(f"http://user:secret@127.0.0.1:{listening.getsockname()[1]}")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_host_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(MetalearnError, match=r"tracking server http://nowhere\.invalid does not answer"):
        tracking.prepare("http://nowhere.invalid")


def test_a_folder_of_files_as_tracking_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use sqlite:///"):
        tracking.prepare(str(tmp_path / "mlruns"))


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, but a text that is long enough" * 100)
    with pytest.raises(MetalearnError, match=r"mlflow\.db is damaged, or no database: move it away") as caught:
        tracking.prepare(f"sqlite:///{tmp_path}/mlflow.db")
    assert "\n" not in str(caught.value)


def test_without_a_tracking_uri_it_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        tracking.find_parent_run("any")


def test_a_pipeline_run_has_one_parent_run_however_often_it_is_opened(uri: str) -> None:
    first = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-1", "first", {"way": 5})
    second = tracking.open_parent_run(
        tracking.DEFAULT_EXPERIMENT, "pipeline-1", "again", {"way": 6, "shot": 1}, {"dataset": "d"}
    )
    assert first == second == tracking.find_parent_run("pipeline-1")
    assert tracking.find_parent_run("pipeline-2") is None
    run = MlflowClient(uri).get_run(first)
    assert run.info.run_name == "first"
    assert run.data.params == {"cfg/way": "5", "cfg/shot": "1"}
    assert run.data.tags["kfp.pipeline_run_id"] == "pipeline-1"
    assert {"dataset", "metalearn.version", "mlflow.source.git.commit"} <= run.data.tags.keys()


def test_the_run_of_the_kfp_plugin_is_used_whatever_its_experiment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("the plugin's")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-3", "name", {"way": 5}) == run_id
    assert tracking.find_parent_run("pipeline-3") == run_id
    assert client.get_run(run_id).data.params == {"cfg/way": "5"}


def test_a_run_id_that_does_not_exist_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(MetalearnError, match=r"MLFLOW_RUN_ID: there is no run ffff"):
        tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-4", "name")


def test_parameters_are_flat_and_long_values_are_cut(uri: str) -> None:
    params = {"maml": {"inner_lr": 0.1, "layers": [1, 2]}, "long": "x" * 7000, "none": None, "odd name?": True}
    params |= {f"option{number}": number for number in range(150)}
    run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-5", "name", params)
    logged = MlflowClient(uri).get_run(run_id).data.params
    assert len(logged) == 155
    assert logged["cfg/maml/inner_lr"] == "0.1"
    assert logged["cfg/maml/layers"] == "[1, 2]"
    assert logged["cfg/long"] == "x" * 6000
    assert logged["cfg/none"] == "null"
    assert logged["cfg/odd name_"] == "true"


def test_runs_are_listed_newest_first_with_the_figures_of_their_learners(database: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database)
        assert tracking.list_runs(experiment="nobody's") == ()
        older = tracking.open_parent_run("listed", "older", "older run")
        tracking.set_outcome(older, "FAILED", "build: no such\nfolder")
        time.sleep(0.01)
        newer = tracking.open_parent_run("listed", "newer", "newer run")
        tracking.log_dataset(newer, manifest(), str(tmp_path), "train")
        tags = {"learner_with_options": "protonet width=8", "shape": "5-way 1-shot 15-query", "cached_from": older}
        child = tracking.start_child(newer, "protonet 5-way", tags, {"learner": "protonet"})
        tracking.log_metrics(child, {"test/accuracy": 0.93, "test/ci95": 0.01, "test/accuracy/Ge'ez: x": 0.5})
        tracking.set_outcome(newer, "FINISHED")
        first, second = tracking.list_runs(experiment="listed")
        assert tracking.list_runs(1, "listed") == (first,)
    assert (first.run_id, first.name, first.status, first.dataset) == (newer, "newer run", "FINISHED", "ab" * 16)
    assert first.seconds is not None and first.seconds >= 0
    assert first.results == (
        tracking.LearnerResult(child, "protonet width=8", 0.93, 0.01, "5-way 1-shot 15-query", older),
    )
    assert (second.status, second.reason, second.results) == ("FAILED", "build: no such folder", ())


def test_the_dataset_of_a_run_has_the_digest_of_its_manifest(uri: str, tmp_path: Path) -> None:
    run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-6", "name")
    tracking.log_dataset(run_id, manifest(), str(tmp_path), "train")
    tracking.log_dataset(run_id, manifest(), "s3://bucket/datasets/x", "test")
    inputs = MlflowClient(uri).get_run(run_id).inputs.dataset_inputs
    assert {entry.dataset.digest for entry in inputs} == {"ab" * 16}
    assert json.loads(inputs[0].dataset.profile)["classes"] == {"train": 2, "validation": 0, "test": 1}


def test_buffered_metrics_arrive_in_batches_with_their_steps(uri: str) -> None:
    run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-7", "name")
    buffer = tracking.MetricBuffer(run_id, every_seconds=3600)
    for step in range(2500):
        buffer.log({"train/loss": 1 / (step + 1)}, step)
    assert MlflowClient(uri).get_metric_history(run_id, "train/loss") == []
    assert buffer.close() == 0
    assert buffer.close() == 0
    history = MlflowClient(uri).get_metric_history(run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(n, 1 / (n + 1)) for n in range(2500)]


def test_metrics_are_sent_while_training_goes_on(uri: str) -> None:
    run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline-8", "name")
    with tracking.MetricBuffer(run_id, every_seconds=0.05) as buffer:
        buffer.log({"loss": 1.0}, 1)
        deadline = time.monotonic() + 10
        while not MlflowClient(uri).get_metric_history(run_id, "loss"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_server_that_goes_away_costs_no_metric_when_it_returns(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Callable[[], list[dict[str, str]]]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = workshop.free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with server(tmp_path, port):
        tracking.prepare(uri)
        run_id = tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "lost", "name")
        buffer = tracking.MetricBuffer(run_id, every_seconds=3600, step="protonet")
        buffer.log({"loss": 1.0}, 1)
        assert buffer.flush() == 0
    buffer.log({"loss": 0.5}, 2)
    assert buffer.flush() == 1
    buffer.log({"loss": 0.25}, 3)
    assert buffer.flush() == 2
    (warning,) = events()
    assert warning["kind"] == "warning"
    assert f"tracking server {uri} does not answer" in warning["text"]
    with server(tmp_path, port):
        assert buffer.close() == 0
        history = MlflowClient(uri).get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(events()) == 1


def test_what_could_not_be_sent_at_the_end_is_counted_and_said(
    workshop: Any, monkeypatch: pytest.MonkeyPatch, events: Callable[[], list[dict[str, str]]]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{workshop.free_port()}")
    buffer = tracking.MetricBuffer("a" * 32, every_seconds=3600)
    buffer.log({"loss": 1.0, "accuracy": 0.5}, 1)
    assert buffer.close() == 2
    assert "2 metric values of run aaaa" in events()[-1]["text"]


class Unanswering:
    """Stands for MLflow's client where the server takes requests and does not answer; keeps how long each waits."""

    def __init__(self, *, gives_up: bool) -> None:
        self.timeouts: list[str] = []
        self.asked, self.answers, self._gives_up = threading.Event(), threading.Event(), gives_up

    def log_batch(self, *_: object, **__: object) -> None:
        self.timeouts.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        self.asked.set()
        if self._gives_up:
            raise MetalearnError("no answer in time")
        self.answers.wait(20)


class EndedError(Exception):
    pass


def test_after_an_error_the_metrics_wait_for_no_request_that_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch, events: Callable[[], list[dict[str, str]]]
) -> None:
    server = Unanswering(gives_up=False)
    monkeypatch.setattr(metric_buffer, "client", lambda _: server)
    monkeypatch.setattr(metric_buffer, "_LAST_CALL_S", 0.1)
    with pytest.raises(EndedError), tracking.MetricBuffer("a" * 32, every_seconds=0.01, uri="http://away") as buffer:
        buffer.log({"loss": 1.0, "accuracy": 0.5}, 1)
        assert server.asked.wait(30)
        raise EndedError
    server.answers.set()
    assert [event["text"] for event in events()] == [
        f"2 metric values of run {'a' * 32} could not be sent to http://away: it does not answer"
    ]


@pytest.mark.parametrize(("error", "timeout"), [(None, "30"), (EndedError, "3")])
def test_after_an_error_the_last_metrics_are_offered_for_seconds_only(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None, timeout: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    server = Unanswering(gives_up=True)
    monkeypatch.setattr(metric_buffer, "client", lambda _: server)
    with (
        suppress(EndedError),
        tracking.MetricBuffer("a" * 32, every_seconds=3600, uri="http://away") as buffer,
    ):
        buffer.log({"loss": 1.0}, 1)
        if error:
            raise error
    assert server.timeouts == [timeout]


def test_a_lock_that_another_process_holds_is_said_after_the_wait(uri: str) -> None:
    code = "from metalearn_core.tracking_server import lock\nwith lock('promote x'): print('held', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(MetalearnError, match="promote x: another process"), lock("promote x", timeout_s=0.2):
            pass
        other.communicate("\n", timeout=30)
    with lock("promote x", timeout_s=5):
        pass
