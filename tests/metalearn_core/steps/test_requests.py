"""What a person can type on the KFP page is checked by the first step, in one line."""

import json

import pytest

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import UsageError
from metalearn_core.steps.naming import learner_name, learner_of
from metalearn_core.steps.requests import (
    check_learners,
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


def items(*learners: dict) -> list[dict]:
    return learner_items([json.dumps(learner) for learner in ({"learner": "protonet", "backbone": "mlp"}, *learners)])


@pytest.mark.parametrize(
    ("learner", "change", "complaint"),
    [
        ({"learner": "snail"}, {"shot": 5}, r"snail is built for one shot, .* set snail\.shot=5"),
        ({"learner": "snail"}, {"shot": "1-5"}, "snail takes no episodes whose way or shot varies"),
        ({"learner": "maml"}, {"way": "5-20"}, "way 5-20: maml is built for one number of classes"),
        ({"learner": "maml"}, {"train_way": 7}, "maml is trained for the way that it is evaluated at: got train way 7"),
        ({"learner": "maml", "backbone_options": {"widht": 8}}, {}, "^maml: unknown .*did you mean 'width'"),
        ({"learner": "mamll"}, {}, "did you mean 'maml'"),
    ],
)
def test_a_learner_that_cannot_take_the_episodes_is_named_with_what_it_can_whatever_the_data(
    learner: dict, change: dict, complaint: str
) -> None:
    check_learners(items(), training_request(**SHAPE, episodes=1))
    with pytest.raises(UsageError, match=complaint):
        check_learners(items(learner), training_request(**{**SHAPE, "episodes": 1, **change}))


@pytest.mark.parametrize(
    ("learner", "complaint"),
    [
        (
            {"learner": "matchingnet", "backbone_options": {"blocks": 6}},
            r"^matchingnet: conv4\.blocks: .* an image of 12×12 pixels",
        ),
        ({"learner": "relationnet", "backbone": "mlp"}, "^relationnet compares feature maps, backbone mlp gives"),
        ({"learner": "anil", "backbone": "resnet12"}, "^anil: resnet12: .* it takes images of 16×16 or more"),
        (
            {"learner": "centroid", "backbone": "mlp", "options": {"batch_norm": "transductive"}},
            "centroid is always inductive",
        ),
    ],
)
def test_a_learner_that_cannot_take_the_examples_is_named_with_what_it_can(
    learner: dict, complaint: str, small_dataset: EpisodeDataset
) -> None:
    request = training_request(**SHAPE, episodes=1)
    check_learners(items(learner), request)
    check_learners(items({"learner": "maml"}), request, small_dataset.manifest)
    with pytest.raises(UsageError, match=complaint):
        check_learners(items(learner), request, small_dataset.manifest)


def test_vectors_are_refused_for_learners_and_backbones_of_pictures(small_dataset: EpisodeDataset) -> None:
    vectors = {"modality": "vector", "example_shape": (16,), "dtype": "float32", "mean": (0.0,), "std": (1.0,)}
    spec = small_dataset.spec.model_copy(update=vectors)
    manifest = small_dataset.manifest.model_copy(update={"spec": spec})
    request = training_request(**SHAPE, episodes=1)
    check_learners(items(), request, manifest)
    with pytest.raises(UsageError, match=r"^relationnet takes image examples, got vector"):
        check_learners(items({"learner": "relationnet"}), request, manifest)
    with pytest.raises(UsageError, match=r"^maml: conv4 takes image examples, got vector: try backbone=mlp"):
        check_learners(items({"learner": "maml"}), request, manifest)


def test_a_way_that_no_domain_has_is_refused_where_episodes_are_drawn_within_one(noisy_dataset: EpisodeDataset) -> None:
    """The six training classes are one domain there; here they are three."""
    entries = [
        entry.model_copy(update={"domain": str(entry.id % 3)} if entry.split == "train" else {})
        for entry in noisy_dataset.manifest.classes
    ]
    manifest = noisy_dataset.manifest.model_copy(update={"classes": tuple(entries)})
    maml = items({"learner": "maml"})
    check_learners(maml, training_request(**SHAPE, episodes=1), manifest)
    check_learners(maml, training_request(**SHAPE, episodes=1, train_within_domain=True), noisy_dataset.manifest)
    with pytest.raises(UsageError, match=r"maml: way 5: no domain of the train split has so many classes, .* has 2 "):
        check_learners(maml, training_request(**SHAPE, episodes=1, train_within_domain=True), manifest)


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
