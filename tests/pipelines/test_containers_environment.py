"""What of the caller's environment reaches the steps in containers."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.container_engine import _environment, docker_runner
from pipelines.containers import Containers, Engine


def test_steps_get_settings_and_never_what_only_a_submission_needs() -> None:
    wanted = {"AWS_ACCESS_KEY_ID": "a", "MLFLOW_TRACKING_URI": "b", "METALEARN_EVENTS": "c", "HTTPS_PROXY": "d"}
    others = {
        "METALEARN_KFP_TOKEN": "secret",
        "METALEARN_KFP_COOKIE": "secret",
        "METALEARN_KFP_TOKEN_FILE": "/secret",
        "METALEARN_HOME": "/x",
        "METALEARN_IMAGE": "x:1",
        "PATH": "/bin",
    }
    assert _environment({**wanted, **others}) == wanted


def mounts(tmp_path: Path) -> dict[str, Any]:
    engine = Engine(address="unix:///x", rootless=False, podman=True, labels_files=False)
    containers = Containers(
        engine=engine, image="x", image_name="x:1", writable=(tmp_path,), readable=(), cache=tmp_path / "cache"
    )
    (tmp_path / "run").mkdir()
    with docker_runner(containers, "run", tmp_path / "run") as runner:
        return {entry["Target"]: entry for entry in runner.container_run_args["mounts"]}


def test_the_callers_aws_folder_is_where_the_steps_look_for_it_log_ins_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".aws" / "sso" / "cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    aws = mounts(tmp_path)["/tmp/.aws"]
    assert (aws["Source"], aws["ReadOnly"], aws["Type"]) == (str(home / ".aws"), True, "bind")
    assert (tmp_path / "run" / "tmp" / ".aws").is_dir(), "the engine would make it as another user"


def test_without_an_aws_folder_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert "/tmp/.aws" not in mounts(tmp_path)
