"""Learners of other distributions: found by name, loaded when asked for, and broken ones told in one line."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metalearn_core.errors import UsageError
from metalearn_core.learners import LEARNERS, learner_class, learner_names
from metalearn_core.plugins import plugin_digest, plugins
from pipelines.config import learner_items, read_config

GOOD = """
from dataclasses import replace
from metalearn_core.learners.metric.protonet import ProtoNet

class Mine(ProtoNet):
    info = replace(ProtoNet.info, name="mine")
"""

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that puts a module and its distribution's entry point where Python finds them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    learners = dict(LEARNERS)

    def put(name: str, value: str, source: str) -> None:
        module = value.partition(":")[0]
        (tmp_path / f"{module}.py").write_text(source)
        described = tmp_path / f"{module}-0.1.dist-info"
        described.mkdir(exist_ok=True)
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
        (described / "entry_points.txt").write_text(f"[metalearn.learners]\n{name} = {value}\n")
        plugins.cache_clear()

    yield put
    plugins.cache_clear()
    for name in LEARNERS.keys() - learners.keys():
        sys.modules.pop(LEARNERS.pop(name).__module__, None)


def test_a_plugins_learner_is_loaded_when_it_is_asked_for_and_not_before(install: Install) -> None:
    install("mine", "plugin_good:Mine", GOOD)
    assert "mine" in learner_names()
    learner_class("protonet")
    assert "plugin_good" not in sys.modules
    assert learner_class("mine").info.name == "mine"
    assert "plugin_good" in sys.modules
    config = read_config(None, {"learners": ["mine"]}, ["mine.train_way=5"], [])
    assert json.loads(learner_items(config)[0])["options"] == {"train_way": 5}


@pytest.mark.parametrize(
    ("value", "source", "words"),
    [
        ("plugin_error:Mine", "import nowhere_at_all", ["cannot be loaded", "ModuleNotFoundError", "nowhere_at_all"]),
        ("plugin_syntax:Mine", "class Mine(:", ["cannot be loaded", "SyntaxError"]),
        ("plugin_missing:Yours", GOOD, ["cannot be loaded", "AttributeError", "Yours"]),
        ("plugin_other:Mine", "class Mine: pass", ["no subclass of Learner"]),
        ("plugin_named:Mine", GOOD.replace('"mine"', '"yours"'), ["calls itself 'yours'", "give the entry point"]),
    ],
)
def test_a_broken_plugin_is_one_line_for_whoever_asks_for_it_and_nothing_for_others(
    install: Install, value: str, source: str, words: list[str]
) -> None:
    install("mine", value, source)
    assert learner_class("protonet")
    with pytest.raises(UsageError) as error:
        learner_class("mine")
    line = str(error.value)
    assert "\n" not in line
    for word in ["learner 'mine'", f"{value} of {value.partition(':')[0]} 0.1", *words]:
        assert word in line, line


def test_a_name_that_is_nearly_a_plugins_names_it(install: Install) -> None:
    install("mine", "plugin_near:Mine", GOOD)
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        learner_class("mines")


def test_a_learner_of_the_package_is_not_replaced_by_a_plugin_of_its_name(install: Install) -> None:
    install("protonet", "plugin_protonet:Mine", GOOD)
    assert learner_class("protonet").__module__ == "metalearn_core.learners.metric.protonet"


def test_what_a_learners_results_are_kept_under_changes_with_its_plugins_sources(install: Install) -> None:
    install("mine", "plugin_digest_of:Mine", GOOD)
    before = plugin_digest("mine")
    assert before == plugin_digest("mine")
    install("mine", "plugin_digest_of:Mine", GOOD + "\n# another\n")
    assert plugin_digest("mine") != before
    assert plugin_digest("protonet") is None
