"""Every verb, as a person and as a script call it, on what two small runs left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipelines.small_run import events_of

Run = Callable[..., Any]
Draw = Callable[..., Path]
Command = Callable[..., list[str]]
SMALL = (
    "--learner", "protonet", "--way", 3, "--query", 3, "--image-size", 16, "--eval-episodes", 20,
    "--split-by", "class", "--ratios", "0.5,0.25,0.25", "--set", "backbone.width=8",
)  # fmt: skip


class Place:
    """A work directory with two runs in it, the second of which promoted a second version."""

    def __init__(self, folder: Path, metalearn: Run, command: Command, images: Path) -> None:
        self.images, self.workdir = images, folder / "work"
        self.metalearn, self.command = metalearn, command
        more = ("--train-episodes", 4, "--workdir", self.workdir)
        self.first = metalearn("run", images, *SMALL, *more)
        lenient = ("--set", "gate.mode=noninferiority", "--set", "gate.margin=0.99", "--set", "gate.alpha=0.4")
        sweep = ("--sweep", "protonet.learning_rate=0.001,0.01")
        self.second = metalearn("run", images, *SMALL, *more, "--seed", 1, *lenient, *sweep, "--json")

    def __call__(self, *arguments: object) -> Any:
        return self.metalearn(*arguments, "--workdir", self.workdir)

    @property
    def dataset(self) -> str:
        return self.second.json["dataset"]["uri"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, metalearn: Run, command: Command, draw_classes: Draw) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(folder, metalearn, command, draw_classes(folder / "images"))


def test_a_run_ends_with_a_table_the_address_and_the_way_to_look_at_it(place: Place) -> None:
    assert place.first.status == 0, place.first.errors
    lines = place.first.output.splitlines()
    assert any(line.startswith("* protonet ") for line in lines)
    assert any("models:/few-shot/1 is promoted" in line for line in lines)
    assert lines[-1].startswith("look at it:  ")
    assert lines[-1].endswith(f"ui --workdir {place.workdir}")
    table = [line for line in lines if line.startswith(("  learner", "learner", "* "))]
    assert max(map(len, table)) <= 80


def test_a_sweep_names_its_points_everywhere(place: Place) -> None:
    assert place.second.status == 0, place.second.errors
    names = [result["name"] for result in place.second.json["results"]]
    assert [name.replace("backbone.width=8 ", "") for name in names] == [
        "protonet learning_rate=0.001",
        "protonet learning_rate=0.01",
    ]
    assert "evaluate protonet backbone.width=8 learning_rate=0.001" in place.second.errors
    latest = place("runs", "--json").json["runs"][0]
    assert [result["learner"] for result in latest["results"]] == names


@pytest.mark.parametrize(
    "verb",
    [
        ["learners"],
        ["doctor"],
        ["models"],
        ["runs"],
        ["dataset", "show", "DATASET"],
        ["dataset", "validate", "DATASET", "--way", 3, "--query", 3],
        ["evaluate", "few-shot@champion", "DATASET", "--episodes", 20, "--seed", 100_000],
        ["compare", "models:/few-shot/1", "models:/few-shot/2", "DATASET", "--episodes", 20],
        ["predict", "few-shot@champion", "--support", "SUPPORT", "--query", "SUPPORT"],
    ],
    ids=lambda verb: " ".join(map(str, verb[:2])),
)
def test_a_verb_answers_in_a_table_or_in_json(place: Place, tmp_path: Path, verb: list[object]) -> None:
    support = tmp_path / "support"
    for folder in sorted(place.images.glob("domain0/*"))[:3]:
        shutil.copytree(folder, support / f"[{folder.name}]")  # no markup
    arguments = [{"DATASET": place.dataset, "SUPPORT": support}.get(str(word), word) for word in verb]
    table, answer = place(*arguments), place(*arguments, "--json")
    assert (table.status, answer.status) == (0, 0), table.errors + answer.errors
    assert table.output.strip()
    if verb[0] in ("learners", "doctor", "models", "runs", "evaluate", "compare"):
        assert max(map(len, table.output.splitlines())) <= 80, table.output
    assert json.loads(answer.output)
    if verb[0] == "predict":
        assert "[class00]" in table.output


def test_learners_lists_every_option_that_can_be_set(metalearn: Run) -> None:
    listed = metalearn("learners").output
    for option in ("inner_steps = 1", "width = 64", "hidden = (64, 64)", "min_domain_accuracy = None"):
        assert option in listed
    assert max(map(len, listed.splitlines())) <= 80


def test_a_rollback_and_a_promotion_with_their_reasons(place: Place) -> None:
    assert place.second.json["selected"]["version"] == "2"
    assert place.second.json["promotion"]["promoted"], place.second.json["promotion"]
    back = place("rollback", "few-shot", "--reason", "confuses b and d", "--json")
    assert back.status == 0, back.errors
    assert back.json["version"] == "1"
    assert "confuses b and d" in back.json["reasons"][0]
    lenient = ("--set", "gate.mode=noninferiority", "--set", "gate.margin=0.99", "--set", "gate.alpha=0.4")
    again = place("promote", "models:/few-shot/2", *lenient, "--episodes", 20, "--json")
    assert again.status == 0, again.errors
    assert again.json["promoted"]
    assert any("data quality checks passed" in reason for reason in again.json["reasons"])
    standing = place("promote", "few-shot@champion", "--dataset", "/nowhere", "--json")
    assert standing.status == 0, standing.errors
    assert "already" in standing.json["reasons"][0]
    why = "it confuses b and d on the new camera, and nobody on the line has noticed that since last week"
    back = place("rollback", "few-shot", "--reason", why)
    assert back.status == 0, back.errors
    assert why in " ".join(back.output.split())
    strict = place("promote", "models:/few-shot/2", "--set", "gate.min_difference=0.99", "--episodes", 20)
    assert strict.status == 1, strict.errors
    lines = strict.output.splitlines()
    assert lines[0] == "models:/few-shot/2 is not promoted:"
    assert all(line.startswith(("  - ", "    ")) for line in lines[1:])
    assert any(line.startswith("    ") for line in lines[1:])
    assert max(map(len, [*lines, *back.output.splitlines()])) <= 80


def test_a_version_goes_to_another_registry_under_another_name_where_the_gate_decides(
    place: Place, metalearn: Run, tmp_path: Path
) -> None:
    production = f"sqlite:///{tmp_path}/production/mlflow.db"
    copied = place("promote", "models:/few-shot/1", "--to", production, "--to-name", "live", "--json")
    assert copied.status == 0, copied.errors
    assert (copied.json["name"], copied.json["version"]) == ("live", "1")
    there = {"MLFLOW_TRACKING_URI": production}
    (listed,) = metalearn("models", "--json", "--workdir", tmp_path / "there", **there).json["models"]
    assert (listed["name"], listed["aliases"]) == ("live", ["candidate"])
    assert listed["bundle_digest"] == copied.json["bundle_digest"]
    assert "live" not in {entry["name"] for entry in place("models", "--json").json["models"]}
    options = ("--dataset", place.dataset, "--episodes", 20, "--json", "--workdir", tmp_path / "there")
    decided = metalearn("promote", "live@candidate", *options, **there)
    assert decided.status == 0, decided.errors
    assert "there is no champion" in " ".join(decided.json["reasons"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--force"], "--force and --reason go together"),
        (["--force", "--reason", " "], "--force and --reason go together"),
        (["--reason", "it is better"], "--force and --reason go together"),
        (["--to-name", "live"], "--to-name: wants --to"),
        (["--to", "sqlite:///x.db", "--force", "--reason", "it is better"], "no gate decides: leave out --force"),
        (["--to", "sqlite:///x.db", "--seed", 0], "no gate decides: leave out --force"),
    ],
)
def test_options_of_promote_that_do_not_go_together_are_told_before_any_work(
    metalearn: Run, tmp_path: Path, options: list[object], words: str
) -> None:
    answer = metalearn("promote", "few-shot@candidate", *options, "--workdir", tmp_path / "work")
    assert answer.status == 2
    assert words in answer.errors
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "verb", [("promote", "few-shot@candidate"), ("rollback", "few-shot")], ids=lambda verb: verb[0]
)
def test_a_server_that_is_away_from_the_start_moved_nothing(
    metalearn: Run, tmp_path: Path, verb: tuple[str, str]
) -> None:
    answer = metalearn(*verb, "--workdir", tmp_path / "work", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert answer.status == 1
    assert "http://127.0.0.1:9 does not answer" in answer.errors
    assert answer.errors.rstrip().endswith("; nothing was moved")


def test_compile_writes_the_pipeline(metalearn: Run, tmp_path: Path) -> None:
    answer = metalearn("compile", "-o", tmp_path / "few_shot.yaml", "--json")
    assert answer.status == 0, answer.errors
    assert Path(answer.json["file"]).read_text().startswith("# PIPELINE DEFINITION")


def test_the_suite_is_kept_with_the_dataset(place: Place) -> None:
    suites = list(Path(place.dataset).glob("quality/*/suite.json"))
    assert suites
    assert "expectations" in suites[0].read_text()


def test_a_training_that_is_stopped_goes_on_with_the_same_command(place: Place, tmp_path: Path) -> None:
    def arguments(name: str) -> list[object]:
        budget = ("--episodes", 300, "--seed", 3, "--set", "backbone.width=8", "--way", 3, "--query", 3)
        return ["train", place.dataset, "--learner", "protonet", "-o", tmp_path / name, *budget]

    stopped = subprocess.Popen(
        place.command(*arguments("stopped"), "--checkpoint-dir", tmp_path / "checkpoints"),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: list(tmp_path.glob("checkpoints/*/.lock")))
    time.sleep(0.5)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert "the same command goes on" in errors
    assert list(tmp_path.glob("checkpoints/*/*.json"))
    assert not (tmp_path / "stopped").exists()
    resumed = place(*arguments("stopped"), "--checkpoint-dir", tmp_path / "checkpoints", "--json")
    whole = place(*arguments("whole"), "--json")
    assert (resumed.status, whole.status) == (0, 0), resumed.errors + whole.errors
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert weights[0] == weights[1]


def test_two_processes_train_what_one_trains(place: Place, tmp_path: Path) -> None:
    for processes in (1, 2):
        answer = place(
            "train", place.dataset, "--learner", "maml", "-o", tmp_path / f"{processes}", "--episodes", 10, "--way", 3,
            "--query", 3, "--set", "backbone.width=8", "--processes", processes, "--json",
            "--checkpoint-dir", tmp_path / f"checkpoints {processes}",
        )  # fmt: skip
        assert answer.status == 0, answer.errors
        assert answer.json["train_episodes"] == 10
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("1", "2"))
    assert one == two


def test_a_place_that_no_bundle_can_have_is_told_before_training(place: Place, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for where in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "model"):
        answer = place("train", place.dataset, "--learner", "protonet", "-o", where, "--seconds", 3600)
        assert answer.status == 2
        assert "notes.txt" in answer.errors.splitlines()[-1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_is_stopped_keeps_its_checkpoint_and_mlflow_knows_that_it_failed(
    tmp_path: Path, metalearn: Run, command: Command, draw_classes: Draw, processes: int
) -> None:
    images, workdir = draw_classes(tmp_path / "images"), tmp_path / "work"
    arguments = ("run", images, *SMALL, "--train-seconds", 8, "--workdir", workdir, "--checkpoint-seconds", 3600)
    arguments += ("--processes", processes)
    run = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((e["step"], e["kind"]) == ("protonet", "progress") for e in events_of(workdir)))
    for process in psutil.Process(run.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == "meta_train":
                process.terminate()
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "stopped by SIGTERM" in errors.splitlines()[-1]
    assert list(workdir.glob("checkpoints/*/*.json"))
    failed = metalearn("runs", "--workdir", workdir, "--json").json["runs"][0]
    assert failed["status"] == "FAILED"
    assert "stopped by SIGTERM" in failed["reason"]
    again = metalearn(*arguments, "--json")
    assert again.status == 0, again.errors
    assert again.json["results"][0]["train_seconds"] < 12
    assert not list(workdir.glob("checkpoints/*/*.json"))


def test_ui_answers_and_prints_one_object(place: Place, command: Command) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        taken = place("ui", "--port", port)
        assert taken.status == 1
        assert f"--port {port}" in taken.errors
    server = subprocess.Popen(
        command("ui", "--port", port, "--json", "--workdir", place.workdir),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        output, _ = server.communicate(timeout=30)
    assert json.loads(output)["address"] == f"http://127.0.0.1:{port}"


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
