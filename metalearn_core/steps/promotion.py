"""The last steps: select a learner, register its bundle, and let the gate decide on its promotion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit
from metalearn_core.steps.frame import pipeline_run_id
from metalearn_core.steps.training import BUNDLE, EVALUATION, TRAINING, EvaluationRequest
from metalearn_core.storage import read_json, write_json

if TYPE_CHECKING:
    from metalearn_core.registry import RegisteredVersion


@dataclass(frozen=True)
class Selection:
    """The learner that did best on validation episodes: its position among those compared, and its name."""

    position: int
    learner: str


def select(evaluations: Sequence[Path]) -> Selection:
    """Select by accuracy on validation episodes; of equals the one that was asked for first. Test figures play no part.

    Args:
        evaluations: folders with `evaluation.json`, in the order in which the learners were asked for.
    """
    if not evaluations:
        raise MetalearnError("there is nothing to select from: no learner was evaluated")
    records = [read_json(folder / EVALUATION, "evaluation") for folder in evaluations]
    position = max(range(len(records)), key=lambda i: (records[i]["validation"]["accuracy"], -i))
    return Selection(position, records[position]["training"]["learner"])


def register(training: Path, evaluation: Path, model_name: str) -> "RegisteredVersion":
    """Register the selected bundle as a version of `model_name`, alias `candidate`; idempotent by its digest."""
    from metalearn_core import registry

    record = read_json(training / TRAINING, "training")
    results = read_json(evaluation / EVALUATION, "evaluation")
    return registry.register_bundle(
        training / BUNDLE,
        model_name,
        run_id=record["run_id"],
        evaluation=results["test"],
        lineage={"dataset_digest": results["test"]["dataset_digest"], "pipeline_run_id": pipeline_run_id()},
    )


def promote(
    dataset: Path,
    dataset_digest: str,
    model_name: str,
    version: str,
    request: EvaluationRequest,
    gate: Mapping[str, Any],
    decision: Path,
) -> bool:
    """Let the gate decide on a version, write the file `decision`, and return whether it is the champion now.

    A version that is the champion already is a success: nothing is evaluated, and nothing is counted as a look.
    """
    from metalearn_core import registry
    from metalearn_core.gate import GateRules

    outcome = registry.promote(
        model_name,
        version,
        dataset=dataset,
        request=request.model_dump(),
        rules=GateRules.model_validate(gate),
    )
    write_json(decision, outcome.model_dump(mode="json"))
    for reason in outcome.reasons:
        emit("note", "promote", text=reason)
    return outcome.promoted
