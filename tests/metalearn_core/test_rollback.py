"""The way back: the champion before the present one, step by step, and past those that were rolled back."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import registry
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError
from metalearn_core.gate import GateRules
from tests.metalearn_core.registry_states import crown, make_versions

promote = partial(registry.promote, checks_passed=True)


def test_a_rollback_without_a_champion_is_one_line(workshop: Any, client: MlflowClient, good: Path) -> None:
    workshop.register(good, "no-champion")
    with pytest.raises(MetalearnError, match="has no champion"):
        registry.rollback("no-champion")


def test_rollbacks_go_back_step_by_step(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "steps", guessing)
    rules = GateRules(mode="noninferiority", margin=0.9)
    for bundle in (good, workshop.make_bundle(tmp_path / "b", small_dataset, seed=6)):
        workshop.register(bundle, "steps")
        assert promote("steps", "candidate", small_dataset, workshop.PROTOCOL, rules).promoted
    assert workshop.aliases(client, "steps") == {"candidate": "3", "champion": "3", "previous_champion": "2"}
    assert registry.rollback("steps").version == "2"
    assert workshop.aliases(client, "steps") == {"candidate": "3", "champion": "2", "previous_champion": "1"}
    assert registry.rollback("steps").version == "1"
    assert workshop.aliases(client, "steps") == {"candidate": "3", "champion": "1"}


def test_a_rollback_goes_past_what_was_rolled_back_before(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "round", guessing)
    workshop.register(good, "round")
    assert promote("round", "candidate", small_dataset, workshop.PROTOCOL).promoted
    client.set_model_version_tag("round", "1", "champion_before", "2")  # as where 1 was champion again in between
    assert registry.rollback("round", asked_by="somebody").version == "1"
    assert workshop.aliases(client, "round") == {"candidate": "2", "champion": "1"}, (
        "what was rolled back is no way back"
    )
    assert json.loads(client.get_model_version("round", "2").tags["rolled_back"])["asked_by"] == "somebody"
    with pytest.raises(MetalearnError, match="had no champion before it"):
        registry.rollback("round")
    assert workshop.aliases(client, "round")["champion"] == "1"


def test_a_version_that_was_champion_twice_hides_none_of_those_before_it(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    make_versions(workshop, client, good, "twice", "1", "2", "3", "2")
    assert registry.rollback("twice").version == "3"
    assert workshop.aliases(client, "twice") == {"champion": "3", "previous_champion": "1"}
    assert registry.rollback("twice").version == "1"
    assert workshop.aliases(client, "twice") == {"champion": "1"}


def test_a_rollback_goes_back_also_where_the_version_before_was_deleted(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    make_versions(workshop, client, good, "deleted", "1", "2", "3")
    client.delete_model_version("deleted", "1")
    assert registry.rollback("deleted").version == "2"
    assert workshop.aliases(client, "deleted") == {"champion": "2"}
    with pytest.raises(MetalearnError, match="has no version 1; there are: 2, 3; nothing was moved"):
        registry.rollback("deleted")


def test_a_champion_whose_rollback_was_cut_off_is_gone_back_to_once_another_took_its_place(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    make_versions(workshop, client, good, "stayed", "1", "2")
    client.set_model_version_tag("stayed", "2", "rolled_back", "{}")  # as a rollback does before it moves the alias
    crown(workshop, "stayed", "3")
    assert "rolled_back" not in client.get_model_version("stayed", "2").tags
    assert registry.rollback("stayed").version == "2"
