"""The page on adding a learner: what it shows is installed and run, in the order in which it shows it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "add-a-learner.md"
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = ("--way", 3, "--query", 3, "--set", "backbone.width=8")

Run = Callable[..., Any]


def pip_install(project: Path, site: Path) -> None:
    """Install a project for those who have `site` on their path, with what is there: no network, nothing shared."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(project)]
    subprocess.run(command, check=True, timeout=120)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name, content in FILE.findall(PAGE.read_text()):
        (folder / name).write_text(content)
    assert {path.name for path in folder.iterdir()} == {"neighbours.py", "test_neighbours.py", "pyproject.toml"}
    return folder


@pytest.fixture(scope="module")
def installed(project: Path, tmp_path_factory: pytest.TempPathFactory, metalearn: Run) -> Run:
    """The command line of somebody who has installed the page's project."""
    site = tmp_path_factory.mktemp("site")
    pip_install(project, site)
    return lambda *arguments: metalearn(*arguments, PYTHONPATH=f"{site}{os.pathsep}{ROOT}")


def test_its_learner_goes_through_the_kit(project: Path, installed: Run) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_neighbours.py"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)


def test_it_is_about_forty_lines() -> None:
    [code] = [content for name, content in FILE.findall(PAGE.read_text()) if name == "neighbours.py"]
    assert len(code.splitlines()) <= 45


def test_every_verb_knows_it(installed: Run, images: Path, tmp_path: Path) -> None:
    listed = {entry["name"]: entry for entry in installed("learners", "--json").json}
    assert "temperature" in listed["neighbours"]["options"]
    episodes, model, here = tmp_path / "episodes", tmp_path / "model", ("--workdir", tmp_path / "work")
    installed("dataset", "build", images, episodes, "--image-size", 16, "--split-by", "class")
    setting = ("--set", "neighbours.temperature=5")
    budget = ("--episodes", 20, *SMALL, *setting, *here)
    trained = installed("train", episodes, "--learner", "neighbours", "-o", model, *budget)
    assert trained.status == 0, trained.errors
    evaluated = installed("evaluate", model, episodes, "--episodes", 20, "--json", *here)
    assert evaluated.status == 0, evaluated.errors
    assert evaluated.json["accuracy"] > 1 / 3
    support = tmp_path / "support"
    for folder in sorted(images.glob("domain0/*"))[:3]:
        shutil.copytree(folder, support / folder.name)
    predicted = installed("predict", model, "--support", support, "--query", support, "--json", *here)
    assert predicted.status == 0, predicted.errors
    assert {entry["label"] for entry in predicted.json["predictions"]} <= {path.name for path in support.iterdir()}


def test_a_bundle_of_a_learner_that_is_not_installed_names_it(
    installed: Run, metalearn: Run, images: Path, tmp_path: Path
) -> None:
    episodes, model, here = tmp_path / "episodes", tmp_path / "model", ("--workdir", tmp_path / "work")
    installed("dataset", "build", images, episodes, "--image-size", 16, "--split-by", "class")
    installed("train", episodes, "--learner", "neighbours", "-o", model, "--episodes", 1, *SMALL, *here)
    answer = metalearn("evaluate", model, episodes, *here)
    assert answer.status == 1
    assert "unknown learner 'neighbours'" in answer.errors.splitlines()[-1]


def test_the_whole_pipeline_trains_it(installed: Run, images: Path, tmp_path: Path) -> None:
    answer = installed(
        "run", images, "--learner", "neighbours", *SMALL, "--image-size", 16, "--split-by", "class",
        "--train-episodes", 4, "--eval-episodes", 20, "--ratios", "0.5,0.25,0.25", "--workdir", tmp_path / "work",
        "--json",
    )  # fmt: skip
    assert answer.status == 0, answer.errors
    assert answer.json["selected"]["learner"] == "neighbours"


def test_a_broken_plugin_is_one_line_and_hides_nothing(metalearn: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    described = tmp_path / "broken-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (described / "entry_points.txt").write_text("[metalearn.learners]\nbroken = broken:Broken\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    assert metalearn("--help", PYTHONPATH=path).errors == ""
    listed = metalearn("learners", "--json", PYTHONPATH=path)
    assert listed.status == 0
    assert "protonet" in {entry["name"] for entry in listed.json}
    [line] = listed.errors.splitlines()
    assert line.startswith("warning: learner 'broken': its plugin, broken:Broken of broken 0.1, cannot be loaded")
    asked = metalearn("run", "--learner", "broken", "--workdir", tmp_path / "work", PYTHONPATH=path)
    assert asked.status == 2
    assert asked.errors.splitlines()[-1].startswith("error: learner 'broken': its plugin, broken:Broken of broken 0.1")
