"""The servers of one machine: their settings, their start, and what is left of them when they are killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.local.process import Process, program
from infra.local.settings import Settings, open_settings
from infra.local.stack import Stack
from infra.local.tracking import TrackingServer
from metalearn_core.errors import MetalearnError

ROOT = Path(__file__).parents[2]


def local(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.local", *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def secrets_of(settings: Settings) -> list[str]:
    values: list[Any] = list(settings.model_dump().values())
    flat = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return [part for part in flat if isinstance(part, str)]


def test_settings_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    first = open_settings(folder)
    assert open_settings(folder) == first
    assert [path.name for path in folder.iterdir()] == ["settings.json"]
    assert (folder.stat().st_mode & 0o777, (folder / "settings.json").stat().st_mode & 0o777) == (0o700, 0o600)
    ports = [first.database_port, first.tracking_port, first.s3_port, *first.store_ports]
    assert len(set(ports)) == len(ports)
    secrets = secrets_of(first)
    assert len(set(secrets)) == len(secrets) == 11
    assert not set(secrets) & set(secrets_of(open_settings(tmp_path / "another")))


@pytest.mark.parametrize("content", ["", "[]", '{"database_port": 1}'])
def test_settings_that_are_none_are_one_line_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    answer = local("up", "--folder", tmp_path)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert str(tmp_path / "settings.json") in answer.stderr


@pytest.mark.parametrize("verb", ["down", "status"])
def test_where_no_stack_was_made_nothing_is_made(tmp_path: Path, verb: str) -> None:
    answer = local(verb, "--folder", tmp_path / "none")
    assert answer.returncode == 2
    assert answer.stderr == f"error: {tmp_path}/none: there is no stack; `up` makes one\n"
    assert not (tmp_path / "none").exists()


def test_a_program_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(MetalearnError, match=r"no-such-program.*pip install.*some-package"):
        program("no-such-program", "some-package")


def test_a_process_outlives_its_starter_gets_no_foreign_variables_and_ends_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the caller")
    process = Process("sleeper", tmp_path)
    process.start(["/bin/sh", "-c", "env; echo ready; sleep 600 & sleep 600"], {"OWN": "yes"})
    while "ready" not in process.log.read_text():
        time.sleep(0.02)
    assert "OWN=yes" in process.log.read_text()
    assert "of the caller" not in process.log.read_text()
    assert Process("sleeper", tmp_path).running()
    process.kill()
    assert not process.running()
    process.stop()


def test_a_server_that_cannot_start_is_one_line_with_the_end_of_its_log(stack: Stack, tmp_path: Path) -> None:
    other = Stack(tmp_path / "stack")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", other.settings.database_port))
        taken.listen()
        with pytest.raises(MetalearnError, match=r"^postgres: ended early: .*\(log: .*postgres.log\)$"):
            other.start("postgres")
    other.start("postgres")
    other.database.stop()
    assert [one.running for one in other.status()] == [False, False, False]


def test_objects_outlive_a_killed_store(s3_store: Stack, s3_prefix: str) -> None:
    bucket, _, key = s3_prefix.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    content = os.urandom(9_000_000)
    client.put_object(Bucket=bucket, Key=key, Body=content)
    s3_store.kill("s3")
    s3_store.start("s3")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == content


def test_the_account_of_the_pipelines_reaches_its_own_bucket_only(s3_store: Stack, s3_prefix: str) -> None:
    client = boto3.client("s3")
    client.list_objects_v2(Bucket="metalearn")
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket="mlflow")
    anonymous = boto3.client("s3", aws_access_key_id="nobody", aws_secret_access_key="nothing")
    with pytest.raises(client.exceptions.ClientError, match="InvalidAccessKeyId"):
        anonymous.list_objects_v2(Bucket="metalearn")


@pytest.mark.slow
def test_a_password_of_the_administrator_that_was_changed_is_one_line_that_names_the_file(team_stack: Stack) -> None:
    settings = team_stack.settings.model_copy(update={"admin_password": "another"})
    server = TrackingServer(team_stack.folder, settings, team_stack.database, team_stack.store)
    with pytest.raises(MetalearnError, match=r"does not take the password of `admin` in settings\.json") as caught:
        server.ready()
    assert "another" not in str(caught.value)
    assert team_stack.tracking.ready()


@pytest.mark.slow
def test_the_command_prints_a_line_to_eval_and_no_secret(team_stack: Stack) -> None:
    answer = local("up", "--folder", team_stack.folder)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f". {team_stack.environment_file}\n"
    script = f"{answer.stdout}echo $MLFLOW_TRACKING_USERNAME@$MLFLOW_TRACKING_URI"
    told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert told == f"pipeline@{team_stack.tracking.uri}\n"
    status = local("status", "--folder", team_stack.folder)
    assert (status.returncode, len(status.stdout.splitlines())) == (0, 3)
    shown = answer.stdout + answer.stderr + status.stdout + status.stderr
    assert not [secret for secret in secrets_of(team_stack.settings) if secret in shown]
    for server in team_stack.servers:
        assert not [secret for secret in secrets_of(team_stack.settings) if secret in server.process.log.read_text()]
        command = Path(f"/proc/{server.process._found().pid}/cmdline")
        assert not [secret for secret in secrets_of(team_stack.settings) if secret in command.read_text()]
