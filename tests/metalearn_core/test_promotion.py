import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import promotion_record, registry
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.subset import split_hashes
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.evaluation.evaluate import Protocol
from metalearn_core.evaluation.scoring import Scorer
from metalearn_core.gate import GateRules

promote = partial(registry.promote, checks_passed=True)
ROOT = Path(__file__).parents[2]


def looks(client: MlflowClient, name: str) -> int:
    tags = client.get_registered_model(name).tags
    return sum(len(value.split()) for tag, value in tags.items() if tag.startswith("gate_looks."))


def test_without_a_champion_the_absolute_rules_promote(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.register(good, "first")
    outcome = promote("first", "candidate", small_dataset, workshop.PROTOCOL)
    assert outcome.promoted
    assert outcome.champion_before is None
    assert any("there is no champion" in reason for reason in outcome.reasons)
    assert workshop.aliases(client, "first") == {"candidate": "1", "champion": "1"}
    assert looks(client, "first") == 0


def test_a_floor_that_is_not_reached_is_recorded_and_nothing_moves(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, guessing: Path
) -> None:
    run_id = workshop.new_run()
    workshop.register(guessing, "floor", run_id)
    outcome = promote("floor", "1", small_dataset, workshop.PROTOCOL, GateRules(min_accuracy=0.9))
    assert not outcome.promoted
    assert "not above chance" in outcome.reasons[0]
    assert "below min_accuracy 0.9" in outcome.reasons[1]
    assert workshop.aliases(client, "floor") == {"candidate": "1"}
    kept = json.loads(client.get_model_version("floor", "1").tags["decision"])
    assert (kept["promoted"], tuple(kept["reasons"])) == (False, outcome.reasons)
    assert kept["rules"]["min_accuracy"] == 0.9
    assert kept["dataset_digest"] == small_dataset.digest
    (artifact,) = client.list_artifacts(run_id, "promotion")
    whole = json.loads(Path(client.download_artifacts(run_id, artifact.path)).read_text())
    assert whole["evaluation"]["accuracy"] == outcome.evaluation["accuracy"]
    assert whole["rules"]["min_accuracy"] == 0.9


def test_the_champion_again_is_a_success_that_changes_nothing(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.install_champion(client, "again", good)
    before = client.get_model_version("again", "1").tags
    outcome = promote("again", "candidate", small_dataset, workshop.PROTOCOL, GateRules(min_accuracy=1))
    assert outcome.promoted
    assert outcome.reasons == ("version 1 is the champion already: nothing was changed",)
    assert client.get_model_version("again", "1").tags == before


def test_a_better_candidate_takes_the_place_and_a_rollback_gives_it_back(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path
) -> None:
    workshop.install_champion(client, "better", guessing)
    workshop.register(good, "better")
    outcome = promote("better", "candidate", small_dataset, workshop.PROTOCOL)
    assert outcome.promoted, outcome.reasons
    assert (outcome.version, outcome.champion_before, outcome.look) == ("2", "1", 1)
    assert outcome.comparison is not None and outcome.comparison["alpha"] == pytest.approx(0.05)
    assert workshop.aliases(client, "better") == {"candidate": "2", "champion": "2", "previous_champion": "1"}
    undone = registry.rollback("better", "complaints from the field")
    assert (undone.version, undone.champion_before) == ("1", "2")
    assert workshop.aliases(client, "better") == {"candidate": "2", "champion": "1"}
    kept = json.loads(client.get_model_version("better", "2").tags["rolled_back"])
    assert (kept["to"], kept["reason"]) == ("1", "complaints from the field")
    with pytest.raises(MetalearnError, match="version 1 had no champion before it"):
        registry.rollback("better")


def test_each_of_the_two_answers_every_episode_once(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    score = Scorer.score

    def counted(self: Scorer, sampler: Any, episodes: int) -> Any:
        asked.append((id(self._learner), episodes))
        return score(self, sampler, episodes)

    monkeypatch.setattr(Scorer, "score", counted)
    workshop.install_champion(client, "once", guessing)
    workshop.register(good, "once")
    outcome = promote("once", "candidate", small_dataset, workshop.PROTOCOL)
    assert [episodes for _, episodes in asked] == [60, 60]
    assert len({learner for learner, _ in asked}) == 2
    assert outcome.comparison is not None and outcome.evaluation is not None
    assert outcome.comparison["accuracy_a"] == outcome.evaluation["accuracy"]


def test_a_version_that_was_rolled_back_becomes_champion_again_only_when_a_person_asks(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path
) -> None:
    workshop.install_champion(client, "undone", guessing)
    workshop.register(good, "undone")
    assert promote("undone", "candidate", small_dataset, workshop.PROTOCOL).promoted
    registry.rollback("undone", "complaints from the field")
    workshop.register(good, "undone")  # as the same pipeline run again does
    refused = promote("undone", "candidate", small_dataset, workshop.PROTOCOL)
    assert not refused.promoted
    assert "version 2 was rolled back" in refused.reasons[0] and "complaints from the field" in refused.reasons[0]
    assert "metalearn promote models:/undone/2" in refused.reasons[0]
    assert workshop.aliases(client, "undone") == {"candidate": "2", "champion": "1"}
    assert json.loads(client.get_model_version("undone", "2").tags["decision"])["promoted"] is False
    asked = promote("undone", "candidate", small_dataset, workshop.PROTOCOL, after_rollback=True)
    assert asked.promoted
    assert workshop.aliases(client, "undone")["champion"] == "2"
    assert "rolled_back" not in client.get_model_version("undone", "2").tags


def test_a_candidate_no_better_than_the_champion_is_not_promoted_and_each_look_costs(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "worse", good)
    workshop.register(guessing, "worse")
    first = promote("worse", "candidate", small_dataset, workshop.PROTOCOL)
    assert not first.promoted
    assert (first.look, looks(client, "worse")) == (1, 1)
    same = promote("worse", "candidate", small_dataset, workshop.PROTOCOL)
    assert (same.look, looks(client, "worse")) == (1, 1)
    other_episodes = workshop.PROTOCOL.model_copy(update={"seed": 5})
    second = promote("worse", "candidate", small_dataset, other_episodes)
    assert (second.look, looks(client, "worse")) == (2, 2)
    assert second.comparison is not None and second.comparison["alpha"] == pytest.approx(2 * 0.05 / 6)
    workshop.register(workshop.make_bundle(tmp_path / "third", small_dataset, seed=7), "worse")
    assert promote("worse", "candidate", small_dataset, workshop.PROTOCOL).look == 3
    assert workshop.aliases(client, "worse")["champion"] == "1"


def test_noninferiority_lets_an_equal_model_in(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "equal", good)
    workshop.register(workshop.make_bundle(tmp_path / "b", small_dataset, seed=2), "equal")
    rules = GateRules(mode="noninferiority", margin=0.5)
    assert promote("equal", "candidate", small_dataset, workshop.PROTOCOL, rules).promoted


def test_a_champion_of_another_input_shape_is_a_recorded_reason(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, tmp_path: Path
) -> None:
    larger = workshop.make_dataset(tmp_path, 16)
    workshop.install_champion(client, "shapes", workshop.make_bundle(tmp_path / "b", larger))
    workshop.register(good, "shapes")
    outcome = promote("shapes", "candidate", small_dataset, workshop.PROTOCOL)
    assert not outcome.promoted
    assert "(1, 16, 16)" in outcome.reasons[0] and "(1, 12, 12)" in outcome.reasons[0]
    assert "register the candidate under another model name" in outcome.reasons[0]
    assert json.loads(client.get_model_version("shapes", "2").tags["decision"])["promoted"] is False
    assert workshop.aliases(client, "shapes")["champion"] == "1"


def test_a_champion_of_another_way_is_a_recorded_reason(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "ways", workshop.make_bundle(tmp_path / "b", small_dataset, learner="maml"))
    workshop.register(good, "ways")
    protocol = workshop.PROTOCOL.model_copy(update={"way": 4})
    outcome = promote("ways", "candidate", small_dataset, protocol)
    assert not outcome.promoted
    assert "built for 3-way episodes, and these are 4-way" in outcome.reasons[0]
    assert "but with --way 3" in outcome.reasons[0], "the candidate takes any way"
    assert promote("ways", "candidate", small_dataset, workshop.PROTOCOL).look == 1, "that is how"


def test_where_its_dataset_is_gone_force_alone_promotes_and_the_version_says_so(
    workshop: Any, client: MlflowClient, good: Path
) -> None:
    workshop.register(good, "gone")
    refused = promote("gone", "candidate", None, workshop.PROTOCOL)
    assert not refused.promoted and "nothing was compared" in refused.reasons[0]
    forced = promote("gone", "candidate", None, workshop.PROTOCOL, force="the disk is lost, the model is good")
    assert forced.promoted and workshop.aliases(client, "gone")["champion"] == "1"
    kept = json.loads(client.get_model_version("gone", "1").tags["decision"])
    assert (kept["forced"], kept["dataset_digest"]) == ("the disk is lost, the model is good", None)


def test_a_candidate_that_cannot_take_the_dataset_is_wrong_use(
    workshop: Any, client: MlflowClient, good: Path, tmp_path: Path
) -> None:
    workshop.register(good, "unfit")
    with pytest.raises(UsageError, match=r"\(1, 16, 16\)"):
        promote("unfit", "candidate", workshop.make_dataset(tmp_path, 16), workshop.PROTOCOL)


def test_test_classes_that_a_model_has_seen_are_left_out(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, tmp_path: Path
) -> None:
    tested = [entry.digest for entry in small_dataset.manifest.of_split("test")]
    cheat = workshop.make_bundle(tmp_path / "b", small_dataset, guesses=True, seen=tested[:4])
    workshop.install_champion(client, "seen", cheat)
    workshop.register(good, "seen")
    outcome = promote("seen", "candidate", small_dataset, workshop.PROTOCOL)
    assert outcome.comparison is not None
    assert (outcome.comparison["classes"], outcome.comparison["excluded_classes"]) == (4, 4)
    assert outcome.evaluation is not None
    assert len({entry["name"] for entry in outcome.evaluation["by_class"]}) == 4


def test_test_classes_that_share_an_image_with_the_training_of_a_model_are_left_out(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, tmp_path: Path
) -> None:
    tested = split_hashes(small_dataset, "test")
    count = small_dataset.manifest.of_split("test")[0].count
    champion = workshop.make_bundle(tmp_path / "a", small_dataset, guesses=True, images=tested[:1])
    workshop.install_champion(client, "shared", champion)
    candidate = workshop.make_bundle(tmp_path / "b", small_dataset, images=[*tested[1:3], *tested[count : count + 1]])
    workshop.register(candidate, "shared")
    outcome = promote("shared", "candidate", small_dataset, workshop.PROTOCOL)
    assert outcome.comparison is not None
    assert outcome.comparison["excluded_classes"] == 2


def test_too_few_unseen_test_classes_are_a_recorded_reason(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, tmp_path: Path
) -> None:
    tested = [entry.digest for entry in small_dataset.manifest.of_split("test")]
    workshop.register(workshop.make_bundle(tmp_path / "b", small_dataset, seen=tested[:7]), "few")
    outcome = promote("few", "candidate", small_dataset, workshop.PROTOCOL)
    assert not outcome.promoted
    assert "7 test classes" in outcome.reasons[0]
    assert workshop.aliases(client, "few") == {"candidate": "1"}


def test_failed_checks_of_the_dataset_stand_against_promotion(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.register(good, "checks")
    outcome = registry.promote("checks", "candidate", small_dataset, workshop.PROTOCOL, checks_passed=False)
    assert not outcome.promoted
    assert outcome.reasons[0] == "a data quality check failed"


@pytest.mark.parametrize("change", [{"split": "validation"}, {"batch_norm": "transductive"}])
def test_the_gate_judges_inductively_on_test_episodes_alone(
    workshop: Any, small_dataset: EpisodeDataset, change: dict[str, str]
) -> None:
    protocol = Protocol(**{**workshop.PROTOCOL.model_dump(), **change})
    with pytest.raises(UsageError, match="the gate judges inductively on test episodes"):
        promote("any", "candidate", small_dataset, protocol)


def test_the_gate_may_ask_for_its_own_number_of_episodes(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.register(good, "episodes")
    outcome = promote("episodes", "candidate", small_dataset, workshop.PROTOCOL, GateRules(episodes=25))
    assert outcome.evaluation is not None and outcome.evaluation["protocol"]["episodes"] == 25


def _spoil(client: MlflowClient, name: str, version: str) -> None:
    model_id = client.get_model_version(name, version).source.removeprefix("models:/")
    folder = Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    weights = folder / "artifacts" / "bundle" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def test_a_damaged_candidate_is_never_promoted(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.register(good, "spoilt")
    _spoil(client, "spoilt", "1")
    with pytest.raises(MetalearnError, match="damaged"):
        promote("spoilt", "candidate", small_dataset, workshop.PROTOCOL)
    assert workshop.aliases(client, "spoilt") == {"candidate": "1"}


def test_a_damaged_champion_is_a_recorded_reason_and_a_rollback_to_one_is_refused(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path
) -> None:
    workshop.install_champion(client, "spoilt-champion", guessing)
    workshop.register(good, "spoilt-champion")
    assert promote("spoilt-champion", "candidate", small_dataset, workshop.PROTOCOL).promoted
    _spoil(client, "spoilt-champion", "1")
    with pytest.raises(MetalearnError, match="damaged"):
        registry.rollback("spoilt-champion")
    assert workshop.aliases(client, "spoilt-champion")["champion"] == "2"
    client.set_registered_model_alias("spoilt-champion", "champion", "1")
    outcome = promote("spoilt-champion", "candidate", small_dataset, workshop.PROTOCOL)
    assert not outcome.promoted
    assert "the champion cannot be compared" in outcome.reasons[0]


def test_where_the_champion_changes_meanwhile_nothing_moves_and_it_is_said(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workshop.install_champion(client, "moving", guessing)
    third = workshop.register(workshop.make_bundle(tmp_path / "b", small_dataset, seed=3), "moving").version
    workshop.register(good, "moving")
    record = promotion_record._record

    def another_machine(*arguments: Any) -> None:
        record(*arguments)
        client.set_registered_model_alias("moving", "champion", third)

    monkeypatch.setattr(promotion_record, "_record", another_machine)
    outcome = promote("moving", "candidate", small_dataset, workshop.PROTOCOL)
    assert not outcome.promoted
    assert "the champion changed from version 1 to 2" in outcome.reasons[0]
    assert workshop.aliases(client, "moving")["champion"] == "2"


def test_a_champion_that_is_built_for_another_shot_is_a_recorded_reason_and_costs_no_look(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, tmp_path: Path
) -> None:
    workshop.install_champion(client, "shots", workshop.make_bundle(tmp_path / "b", small_dataset, learner="snail"))
    workshop.register(good, "shots")
    protocol = workshop.PROTOCOL.model_copy(update={"shot": 2})
    outcome = promote("shots", "candidate", small_dataset, protocol)
    assert (outcome.promoted, outcome.look) == (False, None)
    assert "the champion cannot be compared: snail.shot" in outcome.reasons[0]
    assert "--force" in outcome.reasons[0]
    assert promote("shots", "candidate", small_dataset, protocol, force="it is known to be better").promoted


PROMOTE = """
import sys
from metalearn_core import registry
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.evaluation.evaluate import Protocol
protocol = Protocol.model_validate_json(sys.argv[3])
outcome = registry.promote("both", sys.argv[1], EpisodeDataset.open(sys.argv[2]), protocol, checks_passed=True)
print(outcome.model_dump_json())
"""


def test_two_promotions_at_once_take_turns(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    guessing: Path,
    tmp_path: Path,
) -> None:
    workshop.install_champion(client, "both", guessing)
    workshop.register(good, "both")
    workshop.register(workshop.make_bundle(tmp_path / "b", small_dataset, seed=4), "both")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, version, str(small_dataset.folder), workshop.PROTOCOL.model_dump_json()],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for version in ("2", "3")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=180) for process in processes]
    outcomes = [json.loads(out) for out, _ in outputs]
    first = next(outcome for outcome in outcomes if outcome["champion_before"] == "1")
    second = next(outcome for outcome in outcomes if outcome is not first)
    assert first["promoted"]
    assert second["champion_before"] == first["version"]
    winner = second["version"] if second["promoted"] else first["version"]
    assert workshop.aliases(client, "both")["champion"] == winner
    assert {first["look"], second["look"]} == {1, 2}


@pytest.mark.parametrize(
    ("name", "candidate", "message"),
    [
        ("nobody", "candidate", "unknown model 'nobody'"),
        ("known", "candidat", "has no alias 'candidat'.*candidate"),
        ("known", "9", "no version 9; there are: 1"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(
    workshop: Any,
    client: MlflowClient,
    small_dataset: EpisodeDataset,
    good: Path,
    name: str,
    candidate: str,
    message: str,
) -> None:
    workshop.register(good, "known")
    with pytest.raises(MetalearnError, match=message) as caught:
        promote(name, candidate, small_dataset, workshop.PROTOCOL)
    assert "\n" not in str(caught.value)


def test_a_person_can_force_a_promotion_and_it_is_recorded_as_such(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, guessing: Path
) -> None:
    workshop.install_champion(client, "forced", good)
    workshop.register(guessing, "forced")
    outcome = promote(
        "forced",
        "candidate",
        small_dataset,
        workshop.PROTOCOL,
        asked_by="ann@desk",
        force="the old one breaks the line",
    )
    assert outcome.promoted
    assert outcome.reasons[0] == "promoted by force: the old one breaks the line"
    assert len(outcome.reasons) > 1
    assert workshop.aliases(client, "forced")["champion"] == "2"
    record = json.loads(client.get_model_version("forced", "2").tags["decision"])
    assert (record["forced"], record["asked_by"]) == ("the old one breaks the line", "ann@desk")


def test_force_changes_nothing_where_the_rules_promote(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path
) -> None:
    workshop.register(good, "unforced")
    outcome = promote("unforced", "candidate", small_dataset, workshop.PROTOCOL, force="to be sure")
    assert outcome.promoted
    assert outcome.forced is None
