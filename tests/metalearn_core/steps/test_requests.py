"""What a person can type on the KFP page is checked by the first step, in one line."""

import json

import pytest

from metalearn_core.errors import UsageError
from metalearn_core.steps.naming import learner_name, learner_of
from metalearn_core.steps.requests import (
    evaluation_request,
    gate_rules,
    learner_items,
    training_request,
    training_resources,
)

SHAPE = {"way": 5, "shot": 1, "query": 15}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"way": 0}, "way"), ({"shot": 0}, "shot"), ({"seed": -1}, "seed"), ({"train_way": -1}, "train_way")],
)
def test_a_training_request_out_of_range_names_the_input(change: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        training_request(**{**SHAPE, "episodes": 1, **change})


@pytest.mark.parametrize("budget", [{}, {"episodes": 1, "seconds": 1.0}])
def test_the_training_budget_is_one_of_two(budget: dict) -> None:
    with pytest.raises(UsageError, match="exactly one"):
        training_request(**SHAPE, **budget)


@pytest.mark.parametrize(
    ("gpus", "processes", "wanted"),
    [("0", 1, ("auto", 1)), ("0", 3, ("auto", 3)), ("2", 1, ("cuda", 2)), ("1", 4, ("cuda", 4)), (8, 1, ("cuda", 8))],
)
def test_gpus_are_what_trains_with_a_process_each(gpus: str | int, processes: int, wanted: tuple[str, int]) -> None:
    resources = training_resources(gpus, processes=processes)
    assert (resources.device, resources.processes) == wanted


def test_a_processor_beside_gpus_is_refused() -> None:
    assert training_resources("0", device="cpu").device == "cpu"
    with pytest.raises(UsageError, match="input device: got 'cpu' beside train_gpus 2: take one of the two"):
        training_resources("2", device="cpu")


def test_numbers_that_kfp_turned_into_floats_are_taken() -> None:
    assert evaluation_request(**SHAPE, episodes=20.0).episodes == 20
    assert gate_rules({"episodes": 500.0}).episodes == 500


def test_an_unknown_gate_rule_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'min_accuracy'"):
        gate_rules({"min_acuracy": 0.5})


@pytest.mark.parametrize("texts", [[], ["maml"], ["5"], ['{"name": "maml"}']])
def test_learners_that_are_none_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="learners"):
        learner_items(texts)


def test_a_learner_is_named_by_all_that_tells_it_from_another() -> None:
    plain = {"learner": "maml", "options": {}, "backbone": "conv4", "backbone_options": {}}
    names = {
        learner_name(item)
        for item in (
            plain,
            {**plain, "options": {"inner_steps": 5}},
            {**plain, "backbone": "mlp"},
            {**plain, "backbone_options": {"width": 32}},
        )
    }
    assert names == {"maml", "maml inner_steps=5", "maml backbone=mlp", "maml backbone.width=32"}
    assert learner_of(json.dumps({**plain, "options": {"inner_steps": 5}})) == "maml inner_steps=5"
    assert learner_of('{"learner": 7}') == '{"learner": 7}'
    assert learner_of("no JSON") == "no JSON"
