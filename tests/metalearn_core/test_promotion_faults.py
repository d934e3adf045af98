"""A promotion that is cut off: it says what it has left behind, and asking again ends it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import promotion, promotion_record, registry
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError

AWAY = MetalearnError("the tracking server does not answer")

promote = partial(registry.promote, checks_passed=True)


def gone_at(alias: str) -> Callable[..., None]:
    """A registry that goes away when it is asked to move an alias."""

    def set_alias(name: str, moved: str, version: str) -> None:
        if moved == alias:
            raise AWAY
        move(name, moved, version)

    move = promotion_record.set_alias
    return set_alias


def decision(client: MlflowClient, name: str, version: str) -> dict[str, Any]:
    return dict(json.loads(client.get_model_version(name, version).tags["decision"]))


def test_a_server_that_is_away_before_the_alias_moves_moves_nothing_and_it_is_said(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.register(good, "away-before")

    def gone(*_: Any) -> None:
        raise AWAY

    monkeypatch.setattr(promotion, "Contender", gone)
    with pytest.raises(MetalearnError, match=r"^the tracking server does not answer; nothing was moved$"):
        promote("away-before", "candidate", small_dataset, workshop.PROTOCOL)
    assert "champion" not in workshop.aliases(client, "away-before")


def test_a_server_that_goes_away_while_the_champion_moves_leaves_no_promoted_version_that_is_none(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.register(good, "cut-off")
    with monkeypatch.context() as patch, pytest.raises(MetalearnError, match=r"version 1 is the champion now is not"):
        patch.setattr(promotion_record, "set_alias", gone_at("champion"))
        promote("cut-off", "candidate", small_dataset, workshop.PROTOCOL)
    assert client.get_model_version("cut-off", "1").tags["promoted"] == "false"
    assert decision(client, "cut-off", "1")["promoted"] is False
    assert "champion" not in workshop.aliases(client, "cut-off")
    assert promote("cut-off", "candidate", small_dataset, workshop.PROTOCOL).promoted
    assert decision(client, "cut-off", "1")["promoted"] is True


def test_a_promotion_that_was_cut_off_after_the_champion_moved_is_ended_by_asking_again(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workshop.install_champion(client, "half", guessing)
    workshop.register(good, "half")
    with monkeypatch.context() as patch, pytest.raises(MetalearnError, match="version 2 is the champion, its record"):
        patch.setattr(promotion_record, "set_alias", gone_at("previous_champion"))
        promote("half", "candidate", small_dataset, workshop.PROTOCOL)
    assert workshop.aliases(client, "half")["champion"] == "2"
    assert decision(client, "half", "2")["promoted"] is False
    again = promote("half", "candidate", small_dataset, workshop.PROTOCOL)
    assert again.promoted
    assert "was cut off, and is complete now" in again.reasons[0]
    assert (decision(client, "half", "2")["promoted"], decision(client, "half", "2")["champion_before"]) == (True, "1")
    assert workshop.aliases(client, "half") == {"candidate": "2", "champion": "2", "previous_champion": "1"}
    once_more = promote("half", "candidate", small_dataset, workshop.PROTOCOL)
    assert "is the champion already" in once_more.reasons[0]
    assert registry.rollback("half").version == "1"


def test_a_rollback_that_meets_another_champion_moves_nothing(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from metalearn_core import rollback

    workshop.install_champion(client, "overtaken", guessing)
    workshop.register(good, "overtaken")
    assert promote("overtaken", "candidate", small_dataset, workshop.PROTOCOL).promoted
    third = workshop.register(workshop.make_bundle(tmp_path / "b", small_dataset, seed=3), "overtaken").version

    def another_machine(*arguments: Any) -> promotion.Contender:
        client.set_registered_model_alias("overtaken", "champion", third)
        return promotion.Contender(*arguments)

    monkeypatch.setattr(rollback, "Contender", another_machine)
    with pytest.raises(MetalearnError, match="the champion changed from version 2 to 3 meanwhile; nothing was moved"):
        registry.rollback("overtaken")
    assert workshop.aliases(client, "overtaken")["champion"] == third
    assert "rolled_back" not in client.get_model_version("overtaken", "2").tags
