"""A promotion or a rollback that is cut off: it says what it has left behind, and asking again ends it."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import promotion, promotion_record, registry, rollback
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError
from metalearn_core.promotion_record import UnexpectedError, and_then
from tests.metalearn_core.registry_states import FORCE, crown, make_versions, put_in_a_bucket_that_is_away

ROOT = Path(__file__).parents[2]
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


def artifacts(client: MlflowClient, name: str, version: str) -> list[dict[str, Any]]:
    """The decisions on a version that its run keeps whole, the first one first."""
    run_id = client.get_model_version(name, version).run_id
    files = [file.path for file in client.list_artifacts(run_id, "promotion") if f"{name}-{version}-" in file.path]
    return [json.loads(Path(client.download_artifacts(run_id, path)).read_text()) for path in sorted(files)]


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
    cut_off = decision(client, "half", "2")
    assert cut_off["promoted"] is False
    [kept] = artifacts(client, "half", "2")
    assert kept["comparison"]["accuracy_b"] < kept["evaluation"]["accuracy"], "figures outlive the cut"
    again = promote("half", "candidate", small_dataset, workshop.PROTOCOL)
    assert again.promoted
    assert "was cut off, and is complete now" in again.reasons[0]
    assert again.reasons[1:] == tuple(cut_off["reasons"][1:])
    assert any("candidate" in reason and "against champion" in reason for reason in again.reasons)
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


def test_what_another_machine_made_the_champion_just_after_is_a_recorded_reason(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(workshop, client, good, "just-after", "1")
    move = promotion_record.set_alias

    def another_machine(name: str, alias: str, version: str) -> None:
        move(name, alias, version)
        client.set_registered_model_alias(name, "champion", "3")

    monkeypatch.setattr(promotion_record, "set_alias", another_machine)
    outcome = promote("just-after", "2", None, workshop.PROTOCOL, force=FORCE)
    assert not outcome.promoted
    assert "overtaken by version 3" in outcome.reasons[0]
    assert decision(client, "just-after", "2")["promoted"] is False
    assert workshop.aliases(client, "just-after") == {"champion": "3"}


def test_nothing_is_written_between_the_last_look_at_the_champion_and_its_move(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(workshop, client, good, "last-look", "1")
    tag = promotion_record.tag_version

    def another_machine(name: str, version: str, tags: dict[str, str]) -> None:
        tag(name, version, tags)
        if "champion_before" in tags:
            client.set_registered_model_alias(name, "champion", "3")

    monkeypatch.setattr(promotion_record, "tag_version", another_machine)
    outcome = promote("last-look", "2", None, workshop.PROTOCOL, force=FORCE)
    assert not outcome.promoted
    assert "the champion changed from version 1 to 3" in outcome.reasons[0]
    assert workshop.aliases(client, "last-look") == {"champion": "3"}


def test_a_champion_that_is_replaced_while_it_is_rolled_back_is_not_marked_as_rolled_back(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(workshop, client, good, "replaced", "1", "2")
    tag = rollback.tag_version

    def another_machine(name: str, version: str, tags: dict[str, str]) -> None:
        tag(name, version, tags)
        client.set_registered_model_alias(name, "champion", "3")

    monkeypatch.setattr(rollback, "tag_version", another_machine)
    with pytest.raises(MetalearnError, match="the champion changed from version 2 to 3 meanwhile; nothing was moved"):
        registry.rollback("replaced")
    assert "rolled_back" not in client.get_model_version("replaced", "2").tags


def test_a_bucket_that_is_away_before_the_alias_moves_is_one_line_and_nothing_was_moved(
    workshop: Any, client: MlflowClient, good: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = workshop.new_run()
    workshop.register(good, "no-bucket", run_id)
    put_in_a_bucket_that_is_away(monkeypatch, database, run_id=run_id)
    with pytest.raises(MetalearnError, match=r"127\.0\.0\.1:9.*; nothing was moved$") as caught:
        promote("no-bucket", "candidate", None, workshop.PROTOCOL, force=FORCE)
    assert "\n" not in str(caught.value)
    assert workshop.aliases(client, "no-bucket") == {"candidate": "1"}


def test_a_champion_whose_bucket_is_away_is_a_recorded_reason_that_force_gets_past(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workshop.install_champion(client, "away-champion", guessing)
    workshop.register(good, "away-champion")
    put_in_a_bucket_that_is_away(monkeypatch, database, version=("away-champion", "1"))
    outcome = promote("away-champion", "candidate", small_dataset, workshop.PROTOCOL)
    assert not outcome.promoted
    assert "the champion cannot be compared: the artifacts of tracking server" in outcome.reasons[0]
    assert decision(client, "away-champion", "2")["reasons"] == list(outcome.reasons)
    assert promote("away-champion", "candidate", small_dataset, workshop.PROTOCOL, force=FORCE).promoted


def test_an_artifact_that_cannot_be_written_after_the_alias_moved_leaves_a_promotion_that_asking_again_ends(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = workshop.new_run()
    workshop.register(good, "full", run_id)
    folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "promotion"
    move = promotion_record.set_alias

    def then_the_folder_is_spoilt(*arguments: str) -> None:
        move(*arguments)
        shutil.move(folder, folder.with_name("aside"))
        folder.write_text("no folder")

    with monkeypatch.context() as patch, pytest.raises(MetalearnError, match="version 1 is the champion, its record"):
        patch.setattr(promotion_record, "set_alias", then_the_folder_is_spoilt)
        promote("full", "candidate", None, workshop.PROTOCOL, force=FORCE)
    assert workshop.aliases(client, "full")["champion"] == "1"
    folder.unlink()
    again = promote("full", "candidate", None, workshop.PROTOCOL)
    assert f"promoted by force: {FORCE}" in again.reasons
    assert (decision(client, "full", "1")["promoted"], decision(client, "full", "1")["forced"]) == (True, FORCE)
    assert [kept["promoted"] for kept in artifacts(client, "full", "1")] == [True]


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (MetalearnError("away"), MetalearnError, "away; nothing was moved"),
        (
            OSError(28, "No space left on device", "/a/file"),
            MetalearnError,
            "/a/file: no space left on device; nothing",
        ),
        (KeyError("name"), UnexpectedError, "KeyError: 'name'; nothing was moved"),
    ],
)
def test_every_error_says_once_what_it_has_left_behind(error: Exception, expected: type[Exception], words: str) -> None:
    with pytest.raises(expected, match=f"^{words}") as caught, and_then("is not said"), and_then("nothing was moved"):
        raise error
    assert "is not said" not in str(caught.value)
    assert isinstance(caught.value, MetalearnError) == (expected is MetalearnError), "a bug stays one"


@pytest.mark.parametrize("write", ["tag_version", "set_alias"])
def test_a_rollback_that_is_cut_off_before_the_champion_moves_ends_at_the_same_version(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    name = f"rollback-{write}"
    make_versions(workshop, client, good, name, "1", "2", "3")

    def gone(*_: Any) -> None:
        raise AWAY

    with monkeypatch.context() as patch, pytest.raises(MetalearnError, match=r"does not answer; nothing was moved$"):
        patch.setattr(rollback, write, gone)
        registry.rollback(name)
    assert workshop.aliases(client, name)["champion"] == "3"
    assert registry.rollback(name).version == "2"
    assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}


@pytest.mark.parametrize("cut", [AWAY, KeyboardInterrupt()], ids=["server", "ctrl-c"])
def test_a_rollback_whose_last_answer_is_lost_says_where_to_look_first(
    workshop: Any, client: MlflowClient, good: Path, monkeypatch: pytest.MonkeyPatch, cut: BaseException
) -> None:
    name = f"lost-{type(cut).__name__}"
    make_versions(workshop, client, good, name, "1", "2", "3")
    move = rollback.set_alias

    def lost(name: str, alias: str, version: str) -> None:
        move(name, alias, version)
        if alias == "champion":
            raise cut

    monkeypatch.setattr(rollback, "set_alias", lost)
    words = "whether version 2 is the champion again is not known: look at `metalearn models` first$"
    with pytest.raises(MetalearnError, match=words):
        registry.rollback(name)
    assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}


KILLED = """
import os, sys, traceback
from metalearn_core import registry
from metalearn_core.evaluation.evaluate import Protocol
from metalearn_core.tracking_server import quiet_mlflow
quiet_mlflow()
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
from mlflow import MlflowClient

WRITES = (
    "log_dict", "set_model_version_tag", "delete_model_version_tag", "set_registered_model_alias",
    "delete_registered_model_alias",
)
verb, force, protocol = sys.argv[1], sys.argv[2], Protocol.model_validate_json(sys.argv[3])

def counted(write, left):
    def killed(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)
        return write(*arguments, **named)
    return killed

def work(name, cut):
    left = [cut]
    for method in WRITES:
        setattr(MlflowClient, method, counted(getattr(MlflowClient, method), left))
    if verb == "promote":
        registry.promote(name, "2", None, protocol, force=force)
    else:
        registry.rollback(name)

for line in sys.stdin:
    child = os.fork()  # each from a process that has loaded everything, and opened no database
    if not child:
        try:
            work(line.split()[0], int(line.split()[1]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def killing(verb: str, workshop: Any) -> Iterator[Callable[[str, int], bool]]:
    """Yield what asks for a promotion of version 2, or a rollback, in a process that is killed before its k-th write.

    It returns whether that came about: a process that writes less than that ends well.
    """
    command = [sys.executable, "-c", KILLED, verb, FORCE, workshop.PROTOCOL.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(name: str, cut: int) -> bool:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{name} {cut}\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            assert status in {0, -signal.SIGKILL}
            return status != 0

        yield ask


@pytest.mark.slow
def test_a_promotion_that_is_killed_at_any_write_is_ended_by_the_same_command(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    seen = []
    with killing("promote", workshop) as ask:
        for cut in count(1):
            name = f"killed-{cut}"
            make_versions(workshop, client, good, name, "1")
            if not ask(name, cut):
                break
            seen.append(workshop.aliases(client, name)["champion"])
            again = promote(name, "2", None, workshop.PROTOCOL, force=FORCE)
            assert again.promoted
            assert f"promoted by force: {FORCE}" in again.reasons
            assert ("was cut off, and is complete now" in again.reasons[0]) == (seen[-1] == "2")
            assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}
            kept = decision(client, name, "2")
            assert (kept["promoted"], kept["champion_before"], kept["forced"]) == (True, "1", FORCE)
            assert client.get_model_version(name, "2").tags["promoted"] == "true"
            assert artifacts(client, name, "2")[-1]["promoted"]
            assert registry.rollback(name).version == "1"
    assert seen == sorted(seen)
    assert seen.count("1") >= 5 and seen.count("2") >= 4
    assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}, "it was not killed"


@pytest.mark.slow
def test_a_rollback_that_is_killed_at_any_write_ends_at_the_same_version_by_the_same_command(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    with killing("rollback", workshop) as ask:
        for cut in count(1):
            name = f"killed-back-{cut}"
            make_versions(workshop, client, good, name, "1", "2", "3")
            if not ask(name, cut):
                break
            assert workshop.aliases(client, name)["champion"] == "3"
            assert registry.rollback(name).version == "2"
            assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}
            assert "rolled_back" in client.get_model_version(name, "3").tags
        assert cut == 4, "the champion's alias is the last of three writes"
        assert workshop.aliases(client, name) == {"champion": "2", "previous_champion": "1"}
        make_versions(workshop, client, good, "killed-and-left", "1", "2")
        assert ask("killed-and-left", 2)
    crown(workshop, "killed-and-left", "3")
    assert registry.rollback("killed-and-left").version == "2", "it was the champion all the time"
