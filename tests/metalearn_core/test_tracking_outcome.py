import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from metalearn_core import tracking
from metalearn_core.lifetime import OWNER_VARIABLE, owner_value

REASON = "its process ended early: the same command goes on"


@pytest.fixture
def gone() -> str:
    """What METALEARN_OWNER says of a process that has been killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    value = f"{process.pid}:{psutil.Process(process.pid).create_time()}"
    process.kill()
    process.communicate()
    return value


@pytest.fixture
def experiment(client: MlflowClient, tmp_path: Path) -> str:
    """An experiment that a test has for itself."""
    client.create_experiment(tmp_path.name, artifact_location=tmp_path.as_uri())
    return tmp_path.name


def open_run(experiment: str, name: str) -> str:
    return tracking.open_parent_run(experiment, f"{name} of {experiment}", name)


def outcome(client: MlflowClient, run_id: str) -> tuple[str, str]:
    run = client.get_run(run_id)
    return run.info.status, run.data.tags.get("metalearn.reason", "")


def test_what_still_runs_is_ended_and_what_has_ended_keeps_its_outcome(client: MlflowClient, experiment: str) -> None:
    parent, other = (open_run(experiment, name) for name in ("one", "other"))
    running, finished, of_other = (tracking.start_child(run_id, "learner") for run_id in (parent, parent, other))
    tracking.set_outcome(finished, "FINISHED", "all went well")
    tracking.end_failed(parent, "interrupted:\nthe same command goes on")
    assert outcome(client, running) == outcome(client, parent) == ("FAILED", "interrupted: the same command goes on")
    assert outcome(client, finished) == ("FINISHED", "all went well")
    assert outcome(client, of_other) == outcome(client, other) == ("RUNNING", "")
    tracking.end_failed(parent, "a later reason")
    assert outcome(client, parent)[1] == "interrupted: the same command goes on"


def test_a_step_that_fails_leaves_the_learners_beside_it_alone(client: MlflowClient, experiment: str) -> None:
    parent = open_run(experiment, "with learners side by side")
    maml, protonet = (tracking.start_child(parent, name) for name in ("maml", "protonet"))
    tracking.set_outcome(maml, "FAILED", "its node went away")
    tracking.mark_failed(parent, "meta_train: its node went away")
    assert outcome(client, protonet) == ("RUNNING", "")
    assert outcome(client, parent) == ("FAILED", "meta_train: its node went away")
    tracking.set_outcome(parent, "FINISHED")
    assert outcome(client, parent) == ("FINISHED", "")


def test_runs_of_a_killed_process_are_ended_by_the_next_run(
    client: MlflowClient, experiment: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, gone)
    killed = open_run(experiment, "killed")
    child = tracking.start_child(killed, "learner")
    monkeypatch.setenv(OWNER_VARIABLE, owner_value())
    own = open_run(experiment, "own")
    assert outcome(client, killed) == outcome(client, child) == ("FAILED", REASON)
    assert outcome(client, own) == ("RUNNING", "")
    open_run(experiment, "another of the same owner")
    assert outcome(client, own) == ("RUNNING", "")


def test_a_run_that_its_killed_process_had_ended_keeps_its_outcome(
    client: MlflowClient, experiment: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, gone)
    ended = open_run(experiment, "ended")
    tracking.set_outcome(ended, "FINISHED")
    monkeypatch.setenv(OWNER_VARIABLE, owner_value())
    open_run(experiment, "own")
    assert outcome(client, ended) == ("FINISHED", "")


def test_runs_of_other_machines_and_without_an_owner_are_left_alone(
    client: MlflowClient, experiment: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cluster = open_run(experiment, "on a cluster")
    monkeypatch.setenv(OWNER_VARIABLE, gone)
    elsewhere = open_run(experiment, "elsewhere")
    client.set_tag(elsewhere, "metalearn.host", "another-machine 01234567")
    here = open_run(experiment, "here")
    monkeypatch.setenv(OWNER_VARIABLE, owner_value())
    open_run(experiment, "own")
    assert outcome(client, on_a_cluster) == outcome(client, elsewhere) == ("RUNNING", "")
    assert outcome(client, here) == ("FAILED", REASON)


def test_a_process_without_an_owner_ends_no_runs(
    client: MlflowClient, experiment: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, gone)
    killed = open_run(experiment, "killed")
    monkeypatch.delenv(OWNER_VARIABLE)
    open_run(experiment, "own")
    assert outcome(client, killed) == ("RUNNING", "")
