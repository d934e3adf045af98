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
from metalearn_core.learners import LEARNERS, learner_names
from metalearn_core.steps.requests import gate_rules
from pipelines.config import RunConfig, learner_items, read_config, train_request
from pipelines.recipes import Recipe, config_file, recipes

ROOT = Path(__file__).parent.parent.parent
NAME = re.compile(r"(omniglot|miniimagenet|metadataset)-([\d-]+)way-([a-z0-9_]+)")

FIVE_SHOT = re.compile(r"For 5-shot: (--[\w-]+ [\w.=]*\w(?: --[\w-]+ [\w.=]*\w)*)")

WITHOUT_A_RECIPE = {
    ("centroid", "omniglot"): "Wang et al. 2019 have no Omniglot",
    ("cnp", "miniimagenet"): "Garnelo et al. 2018 have no miniImageNet",
    ("finetune", "omniglot"): "Dhillon et al. 2020 have no Omniglot",
    ("mann", "miniimagenet"): "Santoro et al. 2016 have no miniImageNet",
    ("protomaml", "miniimagenet"): "Triantafillou et al. 2020 train on Meta-Dataset, whose ways and shots vary",
    ("protomaml", "omniglot"): "likewise; Omniglot is a part of it",
    ("transfer", "omniglot"): "Tian et al. 2020 have no Omniglot",
}
MAML_STEPS = {"learning_rate": 1e-3, "schedule": "constant"}
MAML_MINI = {
    **MAML_STEPS, "episodes": 60_000 * 4, "width": 32, "pooling": "max", "meta_batch": 4, "train_query": 15,
}  # fmt: skip
MAMLPP = {"learning_rate": 1e-3, "inner_steps": 5, "eval_steps": 5, "first_order_share": 0, "pooling": "max"}
MAMLPP_OMNIGLOT = {**MAMLPP, "episodes": 50_000 * 8, "meta_batch": 8, "inner_lr": 0.1, "train_query": 1, "width": 64}
REPTILE = {"optimiser": "sgd", "schedule": "linear"}
HALVED = {"episodes": 20 * 2_000, "schedule": "halving", "halvings": 20}
NUMBERS: dict[str, dict[str, Any]] = {
    "metadataset-5-50way-protomaml": {
        "episodes": 75_000, "meta_batch": 1, "learning_rate": 7.25e-4, "weight_decay": 5.3e-5, "first_order": True,
        "inner_lr": 0.0114, "inner_steps": 1, "eval_steps": 1 + 5, "train_query": 10,
    },
    "miniimagenet-5way-anil": {**MAML_MINI, "inner_lr": 0.01, "inner_steps": 5, "eval_steps": 10},
    "miniimagenet-5way-centroid": {"episodes": 90 * 38_400 // 256, "batch_size": 256, "transform": "CL2N"},
    "miniimagenet-5way-finetune": {"inner_optimiser": "adam", "inner_lr": 5e-5, "eval_steps": 25, "head": "imprinted"},
    "miniimagenet-5way-maml": {**MAML_MINI, "inner_lr": 0.01, "inner_steps": 5, "eval_steps": 10},
    "miniimagenet-5way-mamlpp": {
        **MAMLPP, "episodes": 50_000 * 2, "meta_batch": 2, "inner_lr": 0.01, "train_query": 15, "width": 48,
    },
    "miniimagenet-5way-matchingnet": {"scale": 1, "full_context": True},
    "miniimagenet-5way-metasgd": {**MAML_MINI, "inner_steps": 1, "eval_steps": 1},
    "miniimagenet-5way-protonet": {**HALVED, "learning_rate": 1e-3, "train_way": 30, "train_query": 15},
    "miniimagenet-5way-r2d2": {**HALVED, "learning_rate": 5e-3, "train_way": 16},
    "miniimagenet-5way-relationnet": {
        "episodes": 500_000, "learning_rate": 1e-3, "halvings": 500_000 // 100_000, "hidden": 8, "train_query": 15,
    },
    "miniimagenet-5way-reptile": {
        **REPTILE, "episodes": 200_000 * 2, "learning_rate": 0.235, "meta_batch": 2, "inner_lr": 1.2e-3,
        "inner_steps": 19, "eval_steps": 55, "inner_batch": 3, "train_shot": 12, "width": 32, "pooling": "max",
    },
    "miniimagenet-5way-snail": {"shot": 1, "filters": 128, "keys": [64, 256, 512], "values": [32, 128, 256]},
    "miniimagenet-5way-transfer": {"episodes": 100 * 38_400 // 64, "batch_size": 64, "inverse_penalty": 1},
    "miniimagenet-5way-versa": {
        "episodes": 50_000 * 8, "learning_rate": 2.5e-4, "meta_batch": 8, "samples": 10, "train_way": 5,
        "train_query": 15,
    },
    "omniglot-20way-anil": {
        **MAML_STEPS, "episodes": 60_000 * 16, "meta_batch": 16, "inner_lr": 0.1, "inner_steps": 5, "eval_steps": 5,
        "train_query": 1,
    },
    "omniglot-20way-cnp": {"train_way": 20},
    "omniglot-20way-maml": {
        **MAML_STEPS, "episodes": 60_000 * 16, "meta_batch": 16, "inner_lr": 0.1, "inner_steps": 5, "eval_steps": 5,
        "train_query": 1,
    },
    "omniglot-20way-mamlpp": MAMLPP_OMNIGLOT,
    "omniglot-20way-matchingnet": {"scale": 1, "full_context": False},
    "omniglot-20way-metasgd": {
        **MAML_STEPS, "episodes": 60_000 * 16, "meta_batch": 16, "inner_steps": 1, "eval_steps": 1,
    },
    "omniglot-20way-protonet": {**HALVED, "learning_rate": 1e-3, "train_way": 60, "train_query": 5},
    "omniglot-20way-r2d2": {**HALVED, "learning_rate": 5e-3, "train_way": 60},
    "omniglot-20way-relationnet": {
        "episodes": 1_000_000, "learning_rate": 1e-3, "halvings": 1_000_000 // 100_000, "hidden": 8, "train_query": 10,
    },
    "omniglot-20way-reptile": {
        **REPTILE, "episodes": 200_000 * 3, "learning_rate": 1, "meta_batch": 3, "inner_lr": 4.6e-4, "inner_steps": 12,
        "eval_steps": 97, "inner_batch": 15, "train_shot": 9,
    },
    "omniglot-20way-snail": {"meta_batch": 32, "shot": 1},
    "omniglot-20way-versa": {
        "episodes": 100_000 * 16, "learning_rate": 1e-4, "meta_batch": 16, "samples": 10, "train_way": 20,
        "train_query": 15,
    },
    "omniglot-5way-cnp": {"train_way": 5},
    "omniglot-5way-maml": {
        **MAML_STEPS, "episodes": 60_000 * 32, "meta_batch": 32, "inner_lr": 0.4, "inner_steps": 1, "eval_steps": 3,
        "train_query": 1,
    },
    "omniglot-5way-mamlpp": MAMLPP_OMNIGLOT,
    "omniglot-5way-mann": {
        "episodes": 100_000 * 16, "meta_batch": 16, "slots": 128, "slot_size": 40, "heads": 4, "controller": 200,
        "label_offset": 1,
    },
    "omniglot-5way-matchingnet": {"scale": 1, "full_context": False},
    "omniglot-5way-metasgd": {
        **MAML_STEPS, "episodes": 60_000 * 32, "meta_batch": 32, "inner_steps": 1, "eval_steps": 1,
    },
    "omniglot-5way-protonet": {**HALVED, "learning_rate": 1e-3, "train_way": 60, "train_query": 5},
    "omniglot-5way-r2d2": {**HALVED, "learning_rate": 5e-3, "train_way": 60},
    "omniglot-5way-relationnet": {
        "episodes": 1_000_000, "learning_rate": 1e-3, "halvings": 1_000_000 // 100_000, "hidden": 8, "train_query": 19,
    },
    "omniglot-5way-reptile": {
        **REPTILE, "episodes": 200_000 * 3, "learning_rate": 1, "meta_batch": 3, "inner_lr": 4.4e-4, "inner_steps": 12,
        "eval_steps": 86, "inner_batch": 5, "train_shot": 12,
    },
    "omniglot-5way-snail": {"meta_batch": 32, "shot": 1},
    "omniglot-5way-versa": {
        "episodes": 80_000 * 16, "learning_rate": 1e-4, "meta_batch": 16, "samples": 10, "train_way": 5,
        "train_query": 15,
    },
}  # fmt: skip
"""The numbers of the papers, or of the code published with them, in their own units."""

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
def test_a_recipe_has_the_numbers_of_its_paper(recipe: Recipe) -> None:
    config = read_config(recipe.file, {}, [], [])
    [learner] = config.learners
    options = {**config.settings.get("backbone", {}), **config.settings[learner], "episodes": config.train_episodes}
    wanted = NUMBERS[recipe.name]
    assert {name: options.get(name) for name in wanted} == wanted
    data = recipe.name.partition("-")[0]
    assert config.shot == ("1-100" if data == "metadataset" else 1), "other shots are told beside it"
    image = {"omniglot": (28, "grey", "all"), "miniimagenet": (84, "rgb", "none"), "metadataset": (126, "rgb", "none")}
    assert (config.image_size, config.color, config.rotations) == image[data]


def said_of_five_shots(recipe: Recipe) -> re.Match[str] | None:
    return FIVE_SHOT.search(recipe.file.read_text().replace("\n# ", " "))


@pytest.mark.parametrize("recipe", filter(said_of_five_shots, recipes()), ids=lambda recipe: recipe.name)
def test_what_a_recipe_says_of_five_shots_is_a_run_of_as_many_outer_steps(recipe: Recipe) -> None:
    said = said_of_five_shots(recipe)
    assert said
    words = said[1].split()
    options = list(zip(words[::2], words[1::2], strict=True))
    given = {name[2:].replace("-", "_"): int(value) for name, value in options if name != "--set"}
    one, five = (
        read_config(recipe.file, more, sets, [])
        for more, sets in (({}, []), (given, [value for name, value in options if name == "--set"]))
    )
    [learner] = one.learners
    if learner not in {"reptile", "versa"}:  # whose papers have a length for each shape
        assert outer_steps(five) == outer_steps(one)
    assert (one.shot, five.shot) == (1, 5)


def outer_steps(config: RunConfig) -> float:
    assert config.train_episodes
    [learner] = config.learners
    return config.train_episodes / config.settings[learner].get("meta_batch", 1)


def test_every_learner_has_a_recipe_for_each_dataset_of_its_paper() -> None:
    there = {(found[3], found[1]) for recipe in recipes() if (found := NAME.fullmatch(recipe.name))}
    ours = [name for name, kind in LEARNERS.items() if kind.__module__.startswith("metalearn_core.")]
    wanted = {(learner, data) for learner in ours for data in ("omniglot", "miniimagenet")}
    assert there == {*(wanted - WITHOUT_A_RECIPE.keys()), ("protomaml", "metadataset")}
    assert wanted >= WITHOUT_A_RECIPE.keys()


@every_recipe
def test_a_recipe_says_what_it_is_and_where_it_is_from(recipe: Recipe) -> None:
    assert re.search(r"\b(19|20)\d\d\b", recipe.summary), "its paper's year"
    text = recipe.file.read_text()
    assert "eside our defaults" in text, "what differs from our defaults"
    assert ("batch_norm=transductive" in text) == ("evaluate --batch-norm transductive" in text), "it is tested so, too"
    assert max(map(len, text.splitlines())) <= 120


@every_recipe
@pytest.mark.parametrize("level", ["option", "owner", "learner's option", "backbone's option", "gate's rule"])
def test_a_misspelled_key_in_a_recipe_is_named_with_the_nearest(recipe: Recipe, level: str, tmp_path: Path) -> None:
    config = read_config(recipe.file, {}, [], [])
    [learner] = config.learners
    text, width = recipe.file.read_text(), "widths" if config.backbone == "resnet12" else "width"
    misspelled, nearest = {
        "option": (text.replace("image_size:", "image_sise:"), "image_size"),
        "owner": (text.replace(f"  {learner}:", f"  {learner}x:"), learner),
        "learner's option": (text.replace(f"  {learner}:", f"  {learner}:\n    learning_rat: 1"), "learning_rate"),
        "backbone's option": (text.replace(f"  {learner}:", f"  {learner}:\n    backbone.widht: 1"), width),
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
