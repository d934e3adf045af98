"""Waiting for a run: to every end, through lost connections, and how it is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.cluster.client import ClusterClient
from pipelines.cluster.connection import Connection
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.waiting import ENDS, Progress, follow, progress, verdict
from tests.pipelines.cluster.conftest import STORAGE, TRACKING
from tests.pipelines.cluster.contract import Contract
from tests.pipelines.cluster.kfp_server import (
    Cluster,
    KfpServer,
    drop,
    log_in,
    moment,
    refuse,
    stall,
    task,
    web_page,
)
from tests.pipelines.conftest import Answer

Submit = Callable[..., Answer]
Refused = Callable[..., str]
RUN = "7"
TIMEOUT_S = 3  # well above what an answer of this machine takes when it is busy


@pytest.fixture
def client(server: KfpServer, cluster: Cluster) -> ClusterClient:
    cluster.runs[RUN] = {"run_id": RUN, "display_name": "a run"}
    return ClusterClient(Connection(server.host, server.host, timeout_s=TIMEOUT_S))


def watched(client: ClusterClient, **options: float) -> tuple[Progress, list[Progress], list[str]]:
    seen: list[Progress] = []
    notes: list[str] = []
    end = follow(client, RUN, seen.append, notes.append, **{"pause_s": 0.05, "patience_s": 20, **options})
    return end, seen, notes


def test_the_ends_are_those_of_the_api(contract: Contract) -> None:
    states = set(contract.values("v2beta1RuntimeState"))
    assert states > ENDS
    assert states - ENDS == {"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "CANCELING", "PAUSED"}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_waiting_ends_with_every_end(client: ClusterClient, cluster: Cluster, end: str) -> None:
    ways = ["RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED", "CANCELING", end]
    cluster.moments = [moment(state) for state in ways]
    last, seen, notes = watched(client)
    assert last.state == end
    assert [look.state for look in seen] == ["PENDING", "PENDING", "RUNNING", "PAUSED", "CANCELING", end]
    assert notes == []


def test_a_run_without_details_is_pending(client: ClusterClient, cluster: Cluster) -> None:
    cluster.moments = [{}]
    assert progress(client.get_run(RUN)) == Progress("PENDING")


def test_steps_are_shown_in_their_order_without_what_kfp_adds(client: ClusterClient, cluster: Cluster) -> None:
    cluster.moments = [
        moment(
            "RUNNING",
            task("meta-train", "RUNNING", 30, task_id="b"),
            task("root", "RUNNING", 0),
            task("meta-train", "SUCCEEDED", 20, 9, task_id="a"),
            task("meta-train-driver", "SUCCEEDED", 19, 1),
            task("executor", "RUNNING", 21),
            task("open-run", "SUCCEEDED", 2, 5),
            {"task_id": "c", "display_name": "promote", "state": "PENDING"},
        )
    ]
    seen = progress(client.get_run(RUN))
    assert [(step.name, step.state, step.done, step.rounds) for step in seen.steps] == [
        ("open-run", "SUCCEEDED", 1, 1),
        ("meta-train", "RUNNING", 1, 2),
        ("promote", "PENDING", 0, 1),
    ]
    assert seen.steps[0].end is not None
    assert seen.steps[1].end is None


def test_the_step_that_failed_is_named_not_those_that_hold_it(client: ClusterClient, cluster: Cluster) -> None:
    error = {"code": 13, "message": "no space\nleft on device", "details": []}
    cluster.moments = [
        moment(
            "FAILED",
            task("root", "FAILED", 0, 60, task_id="root", error={"code": 13, "message": "a child failed"}),
            task("each-learner", "FAILED", 10, 50, task_id="loop", parent_task_id="root"),
            task("evaluate", "FAILED", 20, 9, parent_task_id="loop"),
            task("meta-train", "FAILED", 20, 5, parent_task_id="loop", error=error),
        )
    ]
    seen = progress(client.get_run(RUN))
    assert (seen.failed, seen.error) == ("meta-train", "no space left on device")
    assert verdict(seen, client) == "meta-train failed: no space left on device"
    assert verdict(seen, client, "the bucket is full") == "meta-train failed: the bucket is full"


def test_an_error_in_the_history_is_found(client: ClusterClient, cluster: Cluster) -> None:
    history = [{"state": "RUNNING"}, {"state": "FAILED", "error": {"code": 2, "message": "evicted"}}]
    cluster.moments = [moment("FAILED", task("promote", "FAILED", 5, 5, state_history=history))]
    assert verdict(progress(client.get_run(RUN)), client) == "promote failed: evicted"
    cluster.moments = [moment("FAILED", state_history=history)]
    assert verdict(progress(client.get_run(RUN)), client) == "the run failed: evicted"


@pytest.mark.parametrize("trouble", [drop, stall(2 * TIMEOUT_S), refuse(503), refuse(500), refuse(429)])
def test_a_lost_connection_is_told_once_and_tried_again(
    client: ClusterClient, cluster: Cluster, trouble: Callable
) -> None:
    cluster.moments = [moment("RUNNING"), moment("SUCCEEDED")]
    cluster.fault("GET", "/runs/", trouble, times=3)
    last, seen, notes = watched(client)
    assert last.state == "SUCCEEDED"
    assert [look.state for look in seen] == ["RUNNING", "SUCCEEDED"]
    assert len(notes) == 2
    assert "the run goes on, trying again" in notes[0]
    assert notes[1] == "the connection is back"


def test_waiting_gives_up_when_nothing_answers_for_long(client: ClusterClient, cluster: Cluster) -> None:
    cluster.fault("GET", "/runs/", drop, times=1000)
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=r"dropped the connection.*no better for 1 seconds"):
        watched(client, patience_s=1)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refuse(401), "log-in"),
        (refuse(403), "does not permit"),
        (refuse(404), "404"),
        (web_page, "HTML"),
        (log_in, "log-in"),
    ],
)
def test_what_does_not_pass_ends_the_waiting_at_once(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused, trouble: Callable, words: str
) -> None:
    cluster.fault("GET", "/runs/", trouble)
    answer = submit("--wait", "--json")
    (run_id,) = cluster.runs
    refused(answer, 1, words, f"run {run_id} goes on", f"{server.host}/#/runs/details/{run_id}")
    assert answer.json["run_id"] == run_id
    assert answer.json["state"] == "PENDING"
    assert cluster.asked().count(f"GET /runs/{run_id}") == 0


# -- the verb


def test_success_alone_is_a_success(submit: Submit, cluster: Cluster) -> None:
    cluster.moments = [
        moment("RUNNING", task("open-run", "RUNNING")),
        moment("SUCCEEDED", task("open-run", "SUCCEEDED", 0, 5)),
    ]
    answer = submit("--wait", "--json")
    assert answer.status == 0
    assert answer.json["state"] == "SUCCEEDED"
    assert answer.json["steps"] == [{"name": "open-run", "state": "SUCCEEDED"}]
    assert answer.errors.splitlines() == [
        "open-run: running",
        "run: running",
        "open-run: succeeded",
        "run: succeeded",
        f"MLflow: {TRACKING}",
    ]


@pytest.mark.parametrize("end", sorted(ENDS - {"SUCCEEDED"}))
def test_every_other_end_is_a_failure(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused, end: str
) -> None:
    cluster.moments = [moment(end)]
    answer = submit("--wait", "--json")
    (run_id,) = cluster.runs
    refused(
        answer,
        1,
        f"the run {'failed' if end == 'FAILED' else f'was {end.lower()}'} (",
        f"{server.host}/#/runs/details/{run_id}",
    )
    assert answer.json["state"] == end
    assert answer.json["failed_step"] is None


def test_the_failed_step_and_its_error_are_one_line(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    failed = task("validate-episodes", "FAILED", 5, 5, error={"code": 2, "message": "too few\nclasses"})
    cluster.moments = [moment("FAILED", failed)]
    answer = submit("--wait", "--json")
    refused(answer, 1, "validate-episodes failed: too few classes")
    assert answer.json["failed_step"] == "validate-episodes"


# -- how it is left


@pytest.fixture
def waiting(
    server: KfpServer, cluster: Cluster, command: Callable[..., list[str]], tmp_path: Path
) -> Iterator["subprocess.Popen[str]"]:
    """A process that waits for a run that does not end."""
    cluster.moments = [moment("RUNNING", task("meta-train", "RUNNING", 9))]
    line = command(
        "submit", "--host", server.host, "--storage", STORAGE, "--tracking-uri", TRACKING, "--wait", "--json"
    )
    environment = {**os.environ, "METALEARN_IMAGE": "registry.example/metalearn:1"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while cluster.looks < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_whoever_stops_waiting_is_told_that_the_run_goes_on(
    waiting: "subprocess.Popen[str]",
    cluster: Cluster,
    server: KfpServer,
    number: signal.Signals,
    status: int,
    word: str,
) -> None:
    assert cluster.looks >= 2
    waiting.send_signal(number)
    output, errors = waiting.communicate(timeout=30)
    (run_id,) = cluster.runs
    assert waiting.returncode == status
    *shown, last = errors.splitlines()
    assert last == f"error: {word}: run {run_id} goes on: {server.host}/#/runs/details/{run_id}"
    assert shown == ["meta-train: running", "run: running"]
    assert f'"run_id": "{run_id}"' in output
    assert not any("terminate" in path for path in cluster.asked())


# -- secrets


@pytest.mark.slow
def test_a_token_is_in_no_output_file_or_pipeline(
    server: KfpServer, cluster: Cluster, metalearn: Callable[..., Answer], tmp_path: Path
) -> None:
    marker = "MARKER-OF-A-SECRET"
    cluster.token = marker
    told = {"code": 13, "message": f"the server repeats: Bearer {marker}", "details": []}
    cluster.moments = [moment("FAILED", task("promote", "FAILED", 0, 5, error=told))]
    home, work = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    work.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(work), "METALEARN_KFP_TOKEN": marker, "METALEARN_DEBUG": "1"}
    options = ("--host", server.host, "--storage", STORAGE, "--tracking-uri", TRACKING, "--json")
    answers = [metalearn("submit", *options, "--wait", **environment)]
    cluster.fault("POST", "/runs", lambda handler: handler.send(500, told))
    answers.append(metalearn("submit", *options, **environment))
    assert [answer.status for answer in answers] == [1, 1]
    assert "the server repeats: Bearer ***" in answers[0].errors
    for answer in answers:
        assert marker not in answer.output + answer.errors
    assert all(marker.encode() not in content for content in cluster.packages)
    assert all(marker.encode() not in request.body for request in cluster.requests)
    assert not [file for file in (*home.rglob("*"), *work.rglob("*")) if file.is_file()]
