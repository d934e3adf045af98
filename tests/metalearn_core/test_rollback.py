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
    assert json.loads(client.get_model_version("round", "2").tags["rolled_back"])["asked_by"] == "somebody"
    with pytest.raises(MetalearnError, match="had no champion before it"):
        registry.rollback("round")
    assert workshop.aliases(client, "round")["champion"] == "1"
