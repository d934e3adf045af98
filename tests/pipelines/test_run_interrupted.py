"""Runs that are killed, that meet another at the same moment, or whose files are on S3."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipelines.small_run import ONE, events_of

Run = Callable[..., Any]
Draw = Callable[..., Path]
Command = Callable[..., list[str]]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("step", ["build_episodes", "meta_train", "register"])
def test_a_run_killed_in_the_middle_of_a_step_leaves_none_running_and_goes_on(
    tmp_path: Path, metalearn: Run, command: Command, draw_classes: Draw, step: str
) -> None:
    images, workdir = draw_classes(tmp_path / "images"), tmp_path / "work"
    arguments = ("run", images, "--workdir", workdir, *ONE)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any(e["kind"] == "start" and e["step"] == step for e in events_of(workdir)))
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(descendants, timeout=15)
    assert alive == []
    answer = metalearn(*arguments)
    assert answer.status == 0, answer.errors
    assert answer.json["selected"]["version"] == "1"


def test_two_runs_at_the_same_moment_in_a_fresh_work_directory(
    tmp_path: Path, command: Command, draw_classes: Draw
) -> None:
    images, workdir = draw_classes(tmp_path / "images"), tmp_path / "work"
    arguments = command("run", images, "--workdir", workdir, *ONE)
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors for _, errors in answers]
    summaries = [json.loads(output) for output, _ in answers]
    assert {summary["selected"]["version"] for summary in summaries} == {"1"}
    assert summaries[0]["results"] == summaries[1]["results"]
    assert summaries[0]["run_id"] != summaries[1]["run_id"]


def test_a_run_with_source_and_storage_in_a_bucket_is_the_run_on_files(
    metalearn: Run, images: Path, tmp_path: Path, bucket: str
) -> None:
    from metalearn_core.storage.objects import Prefix

    Prefix.parse(f"{bucket}/images").upload({str(file.relative_to(images)): file for file in images.rglob("*.png")})
    settings = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    options = ("--learner", "protonet", *ONE)
    here = metalearn("run", images, "--workdir", tmp_path / "here", *options).json
    away = ("run", f"{bucket}/images", "--storage", f"{bucket}/storage", *options)
    answer = metalearn(*away, "--workdir", tmp_path / "away", METALEARN_CACHE=str(tmp_path / "cache"), **settings)
    assert answer.status == 0, answer.errors
    there = answer.json
    assert there["dataset"]["uri"] == f"{bucket}/storage/datasets/{here['dataset']['digest']}"
    assert [result["accuracy"] for result in there["results"]] == [result["accuracy"] for result in here["results"]]
    assert there["results"][0]["bundle"].startswith(f"{bucket}/storage/results/training/")
    elsewhere = {**settings, "METALEARN_CACHE": str(tmp_path / "other-cache")}
    again = metalearn(*away, "--workdir", tmp_path / "away", **elsewhere).json
    assert again["results"][0]["train_seconds"] == there["results"][0]["train_seconds"]  # it was found, not made
    kept = {found.name.split("/")[0] for found in Prefix.parse(f"{bucket}/storage").objects()}
    assert kept == {"datasets", "results"}
    judged = metalearn("evaluate", there["results"][0]["bundle"], there["dataset"]["uri"], "--json", **elsewhere)
    assert judged.json["episodes"] == 1000


def test_a_bucket_that_is_not_there_is_one_line_before_any_step(metalearn: Run, tmp_path: Path, bucket: str) -> None:
    settings = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    answer = metalearn("run", "--storage", "s3://no-such-bucket", "--workdir", tmp_path / "work", *ONE, **settings)
    assert answer.status == 1
    assert answer.errors.splitlines()[-1] == "error: s3://no-such-bucket: there is no such bucket"
