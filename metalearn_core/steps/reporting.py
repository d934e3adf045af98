"""What the report of a pipeline run says, from what its steps recorded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn_core.data.manifest import Manifest
from metalearn_core.evaluation.evaluate import Evaluation
from metalearn_core.evaluation.ranking import Ranking
from metalearn_core.explanation.learner import LearnerExplanation
from metalearn_core.report.content import CheckReport, DecisionReport, LearnerReport, ReportContent
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.promotion import best_models
from metalearn_core.storage import read_json
from metalearn_core.version import git_commit, package_version


def run_content(
    manifest: Manifest,
    quality: Path,
    records: Sequence[Mapping[str, Any]],
    ranking: Ranking,
    verdict: Mapping[str, Any],
    run: Mapping[str, str],
) -> ReportContent:
    """Return what the report of a run says.

    Args:
        manifest: of the episode dataset.
        quality: the folder with the verdict on it.
        records: the content of `evaluation.json` of each model, in the order in which the learners were asked for.
        ranking: of the learners.
        verdict: the gate's decision.
        run: `run`, the MLflow run's id, and `command`, which reproduces the run.
    """
    request = records[0]["training"]["request"]
    budget = f"{request['episodes']:,} episodes" if request["episodes"] else f"{request['seconds']:g} s"
    title = f"{request['way']}-way {request['shot']}-shot on {Path(manifest.source).name}"
    return ReportContent(
        title=title,
        asked={
            "source": manifest.source,
            "learners": ", ".join(line.name for line in ranking.learners),
            "episodes": f"{request['way']}-way {request['shot']}-shot, {request['query']} queries per class",
            "training budget of each learner": budget,
            "training seeds": ", ".join(str(one.seed) for one in ranking.learners[0].seeds),
        },
        manifest=manifest,
        learners=tuple(learner_report(record, verdict) for record in best_models(records)),
        ranking=ranking,
        checks=_checks(quality),
        decision=DecisionReport(
            model=f"models:/{verdict['model_name']}/{verdict['version']}",
            promoted=verdict["promoted"],
            reasons=tuple(verdict["reasons"]),
            champion_before=verdict["champion_before"],
            look=verdict["look"],
        ),
        lineage=_lineage(manifest, run["run"], str(verdict["bundle_digest"])),
        command=run["command"],
    )


def learner_report(record: Mapping[str, Any], verdict: Mapping[str, Any]) -> LearnerReport:
    """Return what the report says of one model, from its record and the gate's decision."""
    training = record["training"]
    return LearnerReport(
        name=learner_name(training["item"]),
        evaluation=Evaluation.model_validate(record["test"]),
        validation_accuracy=record["validation"]["accuracy"],
        options=training["item"]["options"],
        history=tuple(training["history"]),
        train_seconds=training["train_seconds"],
        train_episodes=training["train_episodes"],
        parameters=training["parameters"],
        peak_memory_bytes=training["peak_memory_bytes"],
        selected=training["bundle_digest"] == verdict["bundle_digest"],
        explanation=LearnerExplanation.model_validate(record["explanation"]) if record["explanation"] else None,
    )


def _checks(quality: Path) -> tuple[CheckReport, ...]:
    checks = read_json(quality / "quality.json", "data quality")["checks"]
    names = CheckReport.model_fields
    return tuple(CheckReport(**{name: check[name] for name in names}) for check in checks)


def _lineage(manifest: Manifest, run_id: str, bundle_digest: str) -> dict[str, str]:
    return {
        "MLflow run": run_id,
        "dataset": manifest.digest,
        "bundle": bundle_digest,
        "metalearn": package_version(),
        "commit": git_commit(),
    }
