"""Recipes: each is a run that can be asked for, is found by its name, and comes with the package."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn_core.errors import UsageError
from metalearn_core.learners import learner_names
from metalearn_core.steps.requests import gate_rules
from pipelines.config import learner_items, read_config, train_request
from pipelines.recipes import Recipe, config_file, recipes

ROOT = Path(__file__).parent.parent.parent
NAME = re.compile(r"(omniglot|miniimagenet)-(\d+)way-([a-z0-9_]+)")

every_recipe = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)


@every_recipe
def test_a_recipe_is_a_run_of_the_learner_in_its_name(recipe: Recipe) -> None:
    found = NAME.fullmatch(recipe.name)
    assert found, "a recipe is called DATA-WAYway-LEARNER"
    config = read_config(recipe.file, {}, [], [])
    assert (str(config.way), *config.learners) == found.group(2, 3)
    assert found[3] in learner_names()
    assert len(learner_items(config)) == 1
    assert train_request(config).episodes
    gate_rules(config.gate)
    assert (config.source, config.cluster) == ("glyphs", None), "what data, and where, is the user's"


@every_recipe
def test_a_recipe_says_what_it_is_and_where_it_is_from(recipe: Recipe) -> None:
    assert re.search(r"\b(19|20)\d\d\b", recipe.summary), "its paper's year"
    text = recipe.file.read_text()
    assert "eside our defaults" in text, "what differs from our defaults"
    assert max(map(len, text.splitlines())) <= 120


@every_recipe
@pytest.mark.parametrize("level", ["option", "owner", "learner's option", "backbone's option", "gate's rule"])
def test_a_misspelled_key_in_a_recipe_is_named_with_the_nearest(recipe: Recipe, level: str, tmp_path: Path) -> None:
    [learner] = read_config(recipe.file, {}, [], []).learners
    text = recipe.file.read_text()
    misspelled, nearest = {
        "option": (text.replace("image_size:", "image_sise:"), "image_size"),
        "owner": (text.replace(f"  {learner}:", f"  {learner}x:"), learner),
        "learner's option": (text.replace(f"  {learner}:", f"  {learner}:\n    learning_rat: 1"), "learning_rate"),
        "backbone's option": (text.replace(f"  {learner}:", f"  {learner}:\n    backbone.widht: 1"), "width"),
        "gate's rule": (f"{text}\ngate: {{min_acuracy: 1}}\n", "min_accuracy"),
    }[level]
    (tmp_path / "changed.yaml").write_text(misspelled)
    with pytest.raises(UsageError, match=f"did you mean '{nearest}'"):
        _asked(read_config(tmp_path / "changed.yaml", {}, [], []))


@pytest.mark.parametrize(
    ("assignments", "sweeps", "nearest"),
    [
        (["mamll.inner_steps=5"], [], "maml"),
        (["maml.inner_step=5"], [], "inner_steps"),
        (["backbon.width=5"], [], "backbone"),
        (["backbone.widht=5"], [], "width"),
        (["maml.backbone.widht=5"], [], "width"),
        (["gate.min_acuracy=1"], [], "min_accuracy"),
        (["gat.min_accuracy=1"], [], "gate"),
        ([], ["mamll.inner_steps=5,6"], "maml"),
        ([], ["maml.inner_step=5,6"], "inner_steps"),
        ([], ["backbone.widht=5,6"], "width"),
    ],
)
def test_a_misspelled_assignment_is_named_with_the_nearest(
    assignments: list[str], sweeps: list[str], nearest: str
) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{nearest}'"):
        _asked(read_config(Path("omniglot-5way-maml"), {}, assignments, sweeps))


def _asked(config: Any) -> None:
    """Check all that a run checks of its settings before it starts."""
    gate_rules(config.gate)
    learner_items(config)


def test_options_win_over_a_recipe() -> None:
    config = read_config(Path("omniglot-5way-maml"), {"shot": 5, "train_seconds": 3.0}, ["maml.meta_batch=2"], [])
    assert (config.shot, config.train_seconds, config.train_episodes) == (5, 3.0, None)
    assert config.settings["maml"]["meta_batch"] == 2
    assert config.settings["maml"]["inner_lr"] == 0.4


def test_a_file_of_ones_own_wins_over_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("omniglot-5way-maml")
    assert config_file(own).parent.name == "recipes"
    own.write_text("way: 7\n")
    assert read_config(own, {}, [], []).way == 7


def test_a_name_that_is_none_names_the_nearest_and_a_path_that_is_none_itself() -> None:
    with pytest.raises(UsageError, match="no recipe of that name: did you mean 'omniglot-5way-maml'"):
        read_config(Path("omniglot-5way-mamll"), {}, [], [])
    with pytest.raises(UsageError, match="`metalearn recipes` lists them"):
        read_config(Path("xyz"), {}, [], [])
    with pytest.raises(UsageError, match=r"nowhere/omniglot-5way-maml: no such file"):
        read_config(Path("nowhere/omniglot-5way-maml"), {}, [], [])


def test_the_verb_lists_them_and_prints_one(metalearn: Callable[..., Any]) -> None:
    listed = metalearn("recipes")
    assert listed.status == 0, listed.errors
    assert all(recipe.name in listed.output for recipe in recipes())
    assert {entry["name"] for entry in metalearn("recipes", "--json").json} == {recipe.name for recipe in recipes()}
    one = metalearn("recipes", "omniglot-5way-maml")
    assert one.output == config_file(Path("omniglot-5way-maml")).read_text()
    wrong = metalearn("recipes", "omniglot-5way-mamll")
    assert (wrong.status, wrong.errors.count("\n")) == (2, 1)
    assert "omniglot-5way-maml'" in wrong.errors


def test_a_run_takes_a_recipe_by_its_name(metalearn: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    answer = metalearn(
        "run", images, "--config", "omniglot-5way-protonet", "--train-episodes", 2, "--eval-episodes", 20, "--query", 3,
        "--image-size", 16, "--ratios", "0.5,0.25,0.25", "--set", "backbone.width=8", "--workdir", tmp_path / "work",
        "--json",
    )  # fmt: skip
    assert answer.status == 0, answer.errors
    assert [result["learner"] for result in answer.json["results"]] == ["protonet"]


def test_they_are_in_the_wheel(tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "pipelines", "metalearn_core", "components"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"pipelines/recipes/{recipe.file.name}" for recipe in recipes()} <= set(names)
    assert "metalearn_core/testing/__init__.py" in names


def test_a_misspelled_name_is_told_with_the_nearest(metalearn: Callable[..., Any]) -> None:
    answer = metalearn("recipes", "omniglot-5way-protonett")
    assert answer.status == 2
    assert answer.errors == "error: there is no recipe of that name: did you mean 'omniglot-5way-protonet'?\n"
