import json

import pytest

from metalearn_core.errors import UsageError
from metalearn_core.learners import (
    LEARNERS,
    LearnerSpec,
    make_learner,
    parse_spec,
    register,
    resolve_spec,
)
from metalearn_core.learners.metric.protonet import ProtoNet


def test_settings_from_a_command_line_are_read_as_the_options_types():
    spec = parse_spec("maml", {"inner_steps": "5", "first_order": "true", "backbone.width": "32", "inner_lr": "0.1"})
    assert spec.options == {"inner_steps": 5, "first_order": True, "inner_lr": 0.1}
    assert spec.backbone_options == {"width": 32}


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_a_spec_travels_as_json_and_resolving_writes_every_option_out(name, images):
    spec = parse_spec(name, {"backbone.width": 8, "backbone.blocks": 2})
    assert LearnerSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    resolved = resolve_spec(spec)
    assert set(resolved.options) == set(LEARNERS[name].Config.model_fields)
    assert resolve_spec(resolved) == resolved
    assert make_learner(resolved, images, way=5).config == make_learner(spec, images, way=5).config


def test_each_paper_has_its_own_way_of_halving_the_image():
    halving = {name: resolve_spec(LearnerSpec(learner=name)).backbone_options["pooling"] for name in LEARNERS}
    assert (halving["protonet"], halving["maml"]) == ("max", "stride")


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_every_option_is_documented_and_every_learner_names_its_paper(name):
    kind = LEARNERS[name]
    assert all(field.description for field in kind.Config.model_fields.values())
    assert kind.info.name == name
    assert any(character.isdigit() for character in kind.info.paper)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner_step": "5"}, ["inner_step", "did you mean 'inner_steps'"]),
        ({"inner_steps": "many"}, ["maml.inner_steps", "'many'", "integer"]),
        ({"inner_steps": "0"}, ["maml.inner_steps", "'0'", "greater than or equal to 1"]),
        ({"inner_lr": "-1"}, ["maml.inner_lr", "-1", "greater than 0"]),
        ({"inner_lr": "inf"}, ["maml.inner_lr", "inf", "finite number"]),
        ({"gradient_clip": "nan"}, ["maml.gradient_clip", "nan", "finite number"]),
        ({"batch_norm": "running"}, ["maml.batch_norm", "running", "inductive"]),
        ({"backbone": "resnet"}, ["backbone", "resnet", "conv4"]),
        ({"backbone.depth": "3"}, ["depth", "conv4"]),
        ({"backbone.width": "x"}, ["conv4.width", "x"]),
    ],
)
def test_bad_settings_are_named_in_one_line(settings, words):
    with pytest.raises(UsageError) as error:
        parse_spec("maml", settings)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_no_number_may_be_infinite(name):
    for option, value in LEARNERS[name].Config().model_dump().items():
        if isinstance(value, float):
            with pytest.raises(UsageError, match=rf"{name}\.{option}: got 'inf'"):
                parse_spec(name, {option: "inf"})


@pytest.mark.parametrize("backbone", ["conv4", "resnet12"])
def test_no_number_of_a_backbone_may_be_infinite(backbone):
    with pytest.raises(UsageError, match=r"gain: got 'inf'"):
        parse_spec("protonet", {"backbone": backbone, "backbone.gain": "inf"})


def test_an_unknown_learner_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'protonet'"):
        parse_spec("protonets")


def test_a_fixed_way_is_asked_for(images):
    with pytest.raises(UsageError, match="give its way"):
        make_learner(LearnerSpec(learner="maml"), images)


def test_a_name_is_registered_once():
    with pytest.raises(UsageError, match="'protonet' is registered already"):
        register(type("Other", (ProtoNet,), {}))
    assert register(ProtoNet) is ProtoNet
