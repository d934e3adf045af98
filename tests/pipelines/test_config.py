"""What a run is asked for: where values come from, and what is refused before any work."""

import json
from pathlib import Path

import pytest

from metalearn_core.errors import MetalearnError, UsageError
from pipelines.config import check_source, learner_items, pipeline_arguments, read_config


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("way: 7\nshot: 3\nsettings:\n  maml:\n    inner_steps: 2\n")
    config = read_config(file, {"shot": 5}, ["maml.inner_lr=0.1"], [])
    assert (config.way, config.shot, config.query) == (7, 5, 15)
    assert config.settings == {"maml": {"inner_steps": 2, "inner_lr": 0.1}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("wya: 5", "did you mean 'way'"),
        ("way: five", "way: got 'five'"),
        ("- way", "expected option names"),
        ("way: [", "not YAML"),
        ("settings: 5", "settings"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=complaint) as error:
        read_config(file, {}, [], [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"way": 1},
        {"shot": 0},
        {"query": -3},
        {"seed": -1},
        {"train_episodes": 0},
        {"train_seconds": -1.0},
        {"learners": []},
    ],
)
def test_numbers_that_make_no_sense_are_refused(given: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        read_config(None, given, [], [])


def test_the_budget_is_one_of_two() -> None:
    with pytest.raises(UsageError, match="one of the two"):
        read_config(None, {"train_episodes": 5, "train_seconds": 5.0}, [], [])
    assert read_config(None, {"train_episodes": 5}, [], []).train_seconds is None
    assert read_config(None, {}, [], []).train_seconds is not None


@pytest.mark.parametrize("text", ["maml", "maml.inner_steps", "inner_steps=5", ".x=1", "maml.=1"])
def test_a_malformed_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"owner\.option=value"):
        read_config(None, {}, [text], [])


def test_a_sweep_is_unrolled_into_learners() -> None:
    config = read_config(None, {"learners": ["maml", "protonet"]}, [], ["maml.inner_lr=0.1,0.4"])
    items = [json.loads(item) for item in learner_items(config)]
    assert [(item["learner"], item["options"]) for item in items] == [
        ("maml", {"inner_lr": 0.1}),
        ("maml", {"inner_lr": 0.4}),
        ("protonet", {}),
    ]


def test_a_drawn_sweep_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> list[str]:
        sweeps = ["maml.inner_lr=0.1,0.2,0.3,0.4", "maml.inner_steps=1,2,3"]
        return learner_items(read_config(None, {"learners": ["maml"], "sweep_samples": 4, "seed": seed}, [], sweeps))

    assert len(drawn(0)) == 4
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_backbone_option_reaches_every_learner() -> None:
    config = read_config(None, {"learners": ["maml", "protonet"]}, ["backbone.width=32"], [])
    assert all(json.loads(item)["backbone_options"] == {"width": 32} for item in learner_items(config))


@pytest.mark.parametrize(
    ("given", "assignments", "complaint"),
    [
        ({"learners": ["mamll"]}, [], "did you mean 'maml'"),
        ({"learners": ["maml"], "backbone": "conv5"}, [], "did you mean 'conv4'"),
        ({"learners": ["maml"]}, ["maml.inner_step=5"], "did you mean 'inner_steps'"),
        ({"learners": ["maml"]}, ["maml.inner_steps=many"], "inner_steps"),
        ({"learners": ["maml"]}, ["protonet.train_way=5"], "--learner protonet"),
        ({"learners": ["maml"]}, ["protonett.train_way=5"], "protonett"),
    ],
)
def test_a_learner_or_option_that_is_not_there_is_named_with_the_nearest(
    given: dict, assignments: list[str], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        learner_items(read_config(None, given, assignments, []))


def test_a_budget_on_the_command_line_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train_seconds: 60\n")
    config = read_config(file, {"train_episodes": 100}, [], [])
    assert (config.train_episodes, config.train_seconds) == (100, None)


def test_a_sweep_over_the_backbone_reaches_every_learner() -> None:
    config = read_config(None, {"learners": ["maml", "protonet"]}, [], ["backbone.width=16,32"])
    items = [json.loads(item) for item in learner_items(config)]
    assert [(item["learner"], item["backbone_options"]["width"]) for item in items] == [
        ("maml", 16),
        ("maml", 32),
        ("protonet", 16),
        ("protonet", 32),
    ]


@pytest.mark.parametrize("content", ["settings: {maml: 5}", "sweep: {maml: {inner_lr: []}}", "sweep: {maml: 1}"])
def test_options_of_the_wrong_kind_are_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match="maml"):
        read_config(file, {"learners": ["maml"]}, [], [])


def test_a_home_directory_is_understood_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text("source: ~/photos\n")
    arguments = pipeline_arguments(read_config(file, {}, [], []), [], tmp_path, "")
    assert arguments["source"] == str(tmp_path / "photos")


def test_files_that_are_not_there_are_named_before_any_step(tmp_path: Path) -> None:
    with pytest.raises(MetalearnError, match="nowhere"):
        check_source(read_config(None, {"source": str(tmp_path / "nowhere")}, [], []))
    with pytest.raises(MetalearnError, match=r"split file .*none\.csv: there is no such file"):
        check_source(read_config(None, {"split_file": str(tmp_path / "none.csv")}, [], []))
    with pytest.raises(MetalearnError, match=r"there is no .*manifest\.json"):
        check_source(read_config(None, {"split_from": str(tmp_path / "manifest.json")}, [], []))
    with pytest.raises(UsageError, match=r"ratios must be three shares"):
        check_source(read_config(None, {"ratios": (0.5, 0.5, 0.5)}, [], []))


def test_ways_and_shots_may_be_ranges_and_reach_the_pipeline_as_text() -> None:
    config = read_config(None, {"way": "5-20", "shot": "1-10", "train_way": "8"}, [], [])
    assert (config.way, config.shot, config.train_way) == ("5-20", "1-10", 8)
    arguments = pipeline_arguments(config, [], "s3://bucket/place", "")
    wanted = {"way": "5-20", "shot": "1-10", "train_way": "8", "train_shot": "0", "train_within_domain": False}
    assert {name: arguments[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("1", "way: got 1: input should be greater than or equal to 2"),
        ("five", "way: got 'five': input should be a number, or a range as 5-20"),
        ("9-5", "way: got '9-5': input should be a range whose end is not below its start"),
    ],
)
def test_a_way_that_is_none_is_refused(way: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config(None, {"way": way}, [], [])


def test_the_backbone_may_be_set_like_an_option() -> None:
    assert read_config(None, {}, ["backbone=mlp", "backbone.hidden=8,8"], []).backbone == "mlp"
