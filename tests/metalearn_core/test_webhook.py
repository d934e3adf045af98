"""A webhook is told what a run came to by the step that says so; nothing depends on it, and its address is a secret."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metalearn_core import tracking, webhook
from metalearn_core.events import EVENTS_VARIABLE, ON_STDERR

ROOT = Path(__file__).parents[2]
SECRET = "T0P-SECRET-PATH"


@dataclass
class Hook:
    """A chat service, say: what it was sent, and how it answers."""

    answers: list[int] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    delay_s: float = 0
    url: str = ""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    state = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/services/{SECRET}"
            assert self.headers["Content-Type"] == "application/json"
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            time.sleep(state.delay_s)
            self.send_response(state.answers.pop(0) if state.answers else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    monkeypatch.setenv(webhook.WEBHOOK_VARIABLE, state.url)
    yield state
    server.shutdown()
    server.server_close()


def announce(**values: str | None) -> None:
    webhook.announce(
        **{"status": "failed", "step": "meta_train maml", "reason": "no", "run_id": "r", "pipeline_run": "p", **values}
    )


def test_it_gets_one_small_object(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_KFP_URL", "https://kubeflow.example/pipeline")
    announce()
    assert hook.bodies == [
        {
            "run": "r",
            "pipeline_run": "p",
            "status": "failed",
            "step": "meta_train maml",
            "reason": "no",
            "links": {"kubeflow": "https://kubeflow.example/pipeline/#/runs/details/p"},
        }
    ]


def test_without_an_address_nothing_is_sent(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(webhook.WEBHOOK_VARIABLE)
    announce()
    assert hook.bodies == []


@pytest.mark.parametrize(
    ("answers", "sent", "warned"),
    [([503, 429], 3, ""), ([500] * 9, 3, "500"), ([404] * 9, 1, "404"), ([302] * 9, 1, "302")],
)
def test_it_is_told_again_where_that_may_help(hook: Hook, capsys, caplog, answers, sent, warned) -> None:
    hook.answers = list(answers)
    with caplog.at_level(logging.INFO):
        announce()
    assert len(hook.bodies) == sent
    errors = capsys.readouterr().err
    assert (f"the webhook was not told: it answered {warned}" in errors) == bool(warned)
    assert SECRET not in errors + caplog.text


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/{}", "http://{}.invalid/", "ftp://host/{}", "{}", "http://[{}"]
)
def test_an_address_that_is_wrong_is_a_warning_without_it(monkeypatch, capfd, address) -> None:
    monkeypatch.setenv(webhook.WEBHOOK_VARIABLE, address.format(SECRET))
    started = time.monotonic()
    announce()
    assert time.monotonic() - started < 30
    captured = capfd.readouterr()
    assert "meta_train maml: the webhook was not told" in captured.err
    assert SECRET.lower() not in (captured.err + captured.out).lower()


def test_a_pods_log_has_the_warning_once(hook: Hook, monkeypatch, capsys) -> None:
    hook.answers = [404]
    monkeypatch.setenv(EVENTS_VARIABLE, ON_STDERR)
    announce()
    assert capsys.readouterr().err.count("the webhook was not told") == 1


def test_one_that_does_not_answer_is_given_up(hook: Hook, monkeypatch, capsys) -> None:
    hook.delay_s = 1
    monkeypatch.setattr(webhook, "_TIMEOUT_S", (1, 0.1))
    announce()
    assert "the webhook was not told: ReadTimeout" in capsys.readouterr().err


FAILING = """
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.frame import step
with step("meta_train", "maml"):
    raise {error}
"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("MetalearnError('the disk is full')", "the disk is full"),
        ("ZeroDivisionError('by 0')", "ZeroDivisionError: by 0"),
    ],
)
def test_a_step_that_fails_tells_it_and_the_run_in_mlflow(
    hook: Hook, database, client, tmp_path, error, reason
) -> None:
    run = f"kfp {tmp_path.name} {error[:4]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database)
        run_id = tracking.open_parent_run("few-shot", run, "name")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": database, "METALEARN_PIPELINE_RUN_ID": run}
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    [body] = hook.bodies
    assert body == {
        "run": run_id,
        "pipeline_run": run,
        "status": "failed",
        "step": "meta_train maml",
        "reason": reason,
        "links": {},
    }
    failed = client.get_run(run_id)
    assert failed.info.status == "FAILED"
    assert SECRET not in json.dumps(failed.to_dictionary())


def test_a_step_fails_with_its_own_reason_whatever_the_webhook_and_the_tracking_server_do(hook: Hook) -> None:
    hook.answers = [500] * 9
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "METALEARN_PIPELINE_RUN_ID": "p",
                   "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(error="MetalearnError('the disk is full')")],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "meta_train: the disk is full",
        "meta_train maml: the webhook was not told: it answered 500",
    ]
    assert hook.bodies[0]["run"] is None
