"""`metalearn matrix`, as a person runs it: killed, and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Command = Callable[..., list[str]]
OPTIONS = (
    "--learner", "protonet", "--learner", "transfer", "--way", 2, "--query", 2, "--episodes", 6, "--eval-episodes", 20,
    "--set", "backbone.width=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, metalearn: Run, draw_classes: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    images = draw_classes(folder / "images", classes=24, domains=2)
    options = ("--split-by", "class", "--ratios", "0.5,0.2,0.3", "--image-size", 16)
    answer = metalearn("dataset", "build", images, folder / "episodes", *options)
    assert answer.status == 0, answer.errors
    return folder / "episodes"


def test_a_matrix_that_was_killed_goes_on_and_ends_with_the_same_figures(
    dataset: Path, metalearn: Run, command: Command, tmp_path: Path
) -> None:
    line = ("matrix", dataset, *OPTIONS, "--workdir", tmp_path / "work")
    process = subprocess.Popen(command(*line), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = tmp_path / "work" / "results"
    end = time.monotonic() + 200
    while not list(results.glob("domain-cell/*/contents.json")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in results.glob("*/*/contents.json")}
    assert 0 < len(before) < 4 + 8
    answer = metalearn(*line)
    assert answer.status == 0, answer.errors
    assert all(len(row) <= 80 for row in answer.output.splitlines() if "matrix.html" not in row)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in results.glob("*/*/contents.json")}.items()
    made = json.loads((tmp_path / "work" / "matrix" / "matrix.json").read_text())
    assert made["train_domains"] == made["test_domains"] == ["domain0", "domain1"]
    for learner in made["learners"]:
        assert learner["name"].split()[0] in {"protonet", "transfer"}
        assert [cell["trained_on"] for cell in learner["cells"]] == ["domain0"] * 2 + ["domain1"] * 2
        for cell in learner["cells"]:
            assert f"{100 * cell['accuracy']:.1f} ±{100 * cell['ci95']:.1f}" in answer.output
    whole = metalearn("matrix", dataset, *OPTIONS, "--workdir", tmp_path / "other", "--json").json
    assert whole["learners"] == made["learners"]


def test_a_domain_that_is_none_is_one_line(dataset: Path, metalearn: Run, tmp_path: Path) -> None:
    answer = metalearn("matrix", dataset, *OPTIONS, "--domains", "domain7", "--workdir", tmp_path)
    assert answer.status == 2
    assert answer.errors.startswith("error: ")
    assert "domain0" in answer.errors
