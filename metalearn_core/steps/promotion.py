"""The last steps: select a learner, register its bundle, and let the gate decide on its promotion."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.events import emit
from metalearn_core.steps.data import read_dataset
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.requests import EvaluationRequest, gate_rules
from metalearn_core.steps.training import BUNDLE, EVALUATION, TRAINING
from metalearn_core.storage import read_json, write_json

if TYPE_CHECKING:
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.data.episodes import EpisodeShape
    from metalearn_core.promotion_record import Promotion
    from metalearn_core.registry import RegisteredVersion


@dataclass(frozen=True)
class Selection:
    """The learner that did best on validation episodes: its position among those compared, and its name."""

    position: int
    learner: str


def select(evaluations: Sequence[Path]) -> Selection:
    """Select by accuracy on validation episodes; of equals the one that was asked for first. Test figures play no part.

    Of learners that were trained with several seeds the mean over the seeds decides, and then, of that learner's
    models, the best one.

    Args:
        evaluations: folders with `evaluation.json`, in the order in which the learners were asked for.
    """
    if not evaluations:
        raise MetalearnError("there is nothing to select from: no learner was evaluated")
    records = [read_json(folder / EVALUATION, "evaluation") for folder in evaluations]

    def mean(models: Sequence[int]) -> float:
        return sum(_validation(records[i]) for i in models) / len(models)

    models = max(by_learner(records).values(), key=mean)  # the first of equals
    position = max(models, key=lambda i: _validation(records[i]))
    return Selection(position, records[position]["training"]["learner"])


def best_models(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return of each learner the model that is best on validation episodes: the one that stands for it."""
    return [max((records[i] for i in models), key=_validation) for models in by_learner(records).values()]


def _validation(record: Mapping[str, Any]) -> float:
    return float(record["validation"]["accuracy"])


def by_learner(records: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the positions of the models of each learner, by its name with the options that were set, in order."""
    positions: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        positions.setdefault(learner_name(record["training"]["item"]), []).append(position)
    return positions


def register(training: Path, evaluation: Path, model_name: str) -> "RegisteredVersion":
    """Register the selected bundle as a version of `model_name`, alias `candidate`; idempotent by its digest."""
    from metalearn_core import registry
    from metalearn_core.steps.children import child_of

    record = read_json(training / TRAINING, "training")
    results = read_json(evaluation / EVALUATION, "evaluation")
    return registry.register_bundle(
        training / BUNDLE,
        model_name,
        run_id=child_of(record).run_id,
        evaluation=results["test"],
        lineage={"dataset_digest": results["test"]["dataset_digest"], "pipeline_run_id": pipeline_run_id()},
    )


def promote(
    dataset: str,
    dataset_digest: str,
    model_name: str,
    version: str,
    request: EvaluationRequest,
    gate: Mapping[str, Any],
    decision: Path,
) -> bool:
    """Let the gate decide on a version, write the file `decision`, and return whether it is the champion now.

    A version that is the champion already is a success: nothing is evaluated, and nothing is counted as a look. One
    that was rolled back is refused: the same run again must not undo a person's decision. The dataset's checks have
    passed, or the pipeline would have ended at them.

    Raises:
        MetalearnError: what `metalearn_core.promotion.promote` raises.
    """
    from metalearn_core import promotion

    read_dataset(dataset, dataset_digest)
    rules = gate_rules(gate)
    outcome = promotion.standing(model_name, version, rules)
    if outcome is None:
        from metalearn_core.data.dataset import EpisodeDataset
        from metalearn_core.evaluation.evaluate import make_protocol

        protocol = make_protocol(split="test", **request.model_dump())
        outcome = promotion.promote(
            model_name,
            version,
            EpisodeDataset.open(dataset),
            protocol,
            rules,
            checks_passed=True,
            asked_by=f"pipeline run {pipeline_run_id()}",
        )
    write_json(decision, outcome.model_dump(mode="json"))
    return outcome.promoted


def promote_model(
    model: str,
    dataset: str | None,
    shape: Mapping[str, int | str],
    episodes: int,
    seed: int,
    gate: Mapping[str, Any],
    force: str | None = None,
) -> "Promotion":
    """Let the gate decide on a registered model outside a pipeline, also on one that was rolled back.

    The dataset's quality checks are made here, unless the rules ignore them. For the champion itself nothing is done.

    Args:
        model: `name@alias`, `models:/name@alias` or `models:/name/version`.
        dataset: an episode dataset's location; None: the one that the model was trained on. Where that is gone, force
            needs none.
        shape: way, shot and query, where they differ from what the model was made for.
        episodes, seed: of the test episodes.
        gate: rules, by the names of `GateRules`.
        force: the reason to promote it whatever the rules say.

    Raises:
        MetalearnError: there is no such model, or its dataset is not where it was.
    """
    from metalearn_core import promotion
    from metalearn_core.bundle import read_bundle
    from metalearn_core.bundle_fetch import registered_address, resolve_model
    from metalearn_core.data.dataset import EpisodeDataset
    from metalearn_core.evaluation.evaluate import make_protocol

    address = registered_address(model)
    if address is None:
        raise UsageError(f"model {model!r}: only a registered model is promoted: name@alias or models:/name/version")
    description = read_bundle(resolve_model(model))
    protocol = make_protocol(
        split="test", **{**description.episode.model_dump(), **shape}, episodes=episodes, seed=seed
    )
    rules = gate_rules(gate)
    unchanged = promotion.standing(*address, rules)
    if unchanged:
        return unchanged
    opened: EpisodeDataset | None = None
    try:
        opened = EpisodeDataset.open(dataset or description.lineage.dataset_uri)
    except MetalearnError as error:
        if force is None or dataset:
            raise
        emit("warning", "promote", text=f"nothing is compared: {error}")
    checked = None
    if opened is not None and rules.dataset_checks == "required":
        checked = _checked(opened, protocol.shape)
    return promotion.promote(
        *address,
        opened,
        protocol,
        rules,
        checks_passed=checked,
        after_rollback=True,
        asked_by=person(),
        force=force,
    )


def _checked(dataset: "EpisodeDataset", shape: "EpisodeShape") -> bool:
    """Return whether a dataset's test classes pass the quality checks; say which do not."""
    from metalearn_core.data.quality import validate_dataset

    failed = [check for check in validate_dataset(dataset, {"test": shape}).checks if not check.passed]
    for check in failed:
        text = f"{check.name}: found {check.observed}, wanted {check.expected}"
        emit("warning", "promote", text=f"dataset {dataset.digest}: {text}")
    return not any(check.blocking for check in failed)


def person() -> str:
    """Return who runs this process, and on which machine: who asks for a decision."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
