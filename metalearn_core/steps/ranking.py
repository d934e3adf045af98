"""The learners of a pipeline run side by side, from what its steps recorded: for people, for MLflow, and as a file."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn_core.errors import MetalearnError
from metalearn_core.evaluation.ranking import (
    Difference,
    RankedLearner,
    Ranking,
    SeedResult,
    against,
    over_seeds,
    speaks_of,
)
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.promotion import by_learner
from metalearn_core.steps.training import EPISODES
from metalearn_core.storage import write_bytes, write_json

ALPHA = 0.05
JSON_NAME, TABLE_NAME = "comparison.json", "comparison.csv"

Records = Sequence[Mapping[str, Any]]


def rank(records: Records, selected: Mapping[str, Any]) -> Ranking:
    """Return the learners of a run, each against the selected one.

    Args:
        records: the content of `evaluation.json` of each model, in the order in which the learners were asked for.
        selected: that of the selected model.

    Raises:
        MetalearnError: the models were not tested on the same episodes.
    """
    if len({(r["test"]["dataset_digest"], str(r["test"]["protocol"])) for r in records}) > 1:
        raise MetalearnError("comparison: the learners were not tested on the same episodes")
    groups = {name: [records[i] for i in positions] for name, positions in by_learner(records).items()}
    accuracies = {name: np.array([record[EPISODES] for record in models]) for name, models in groups.items()}
    chosen = learner_name(selected["training"]["item"])
    differences, method = against(chosen, accuracies, alpha=ALPHA)
    seeds = len(groups[chosen])
    return Ranking(
        selected=chosen,
        unit="episodes" if seeds == 1 else "seeds",
        alpha=ALPHA,
        method=method,
        speaks_of=speaks_of(seeds),
        learners=tuple(
            _line(name, models).model_copy(update={"against_selected": differences[name]})
            for name, models in groups.items()
        ),
    )


def _line(name: str, models: Records) -> RankedLearner:
    accuracy, half_width = over_seeds([model[EPISODES] for model in models])

    def mean(part: str, figure: str) -> float:
        return float(np.mean([model[part][figure] for model in models]))

    def largest(figure: str) -> int:
        return max(int(model["training"][figure]) for model in models)

    return RankedLearner(
        name=name,
        accuracy=accuracy,
        ci95=half_width,
        ci95_classes=mean("test", "ci95_classes"),
        ece=mean("test", "ece"),
        validation_accuracy=mean("validation", "accuracy"),
        seeds=tuple(
            SeedResult(
                seed=model["training"]["request"]["seed"],
                accuracy=model["test"]["accuracy"],
                ci95=model["test"]["ci95"],
                validation_accuracy=model["validation"]["accuracy"],
            )
            for model in models
        ),
        train_seconds=mean("training", "train_seconds"),
        train_episodes=mean("training", "train_episodes"),
        adaptation_ms=mean("test", "adaptation_ms"),
        parameters=largest("parameters"),
        peak_memory_bytes=largest("peak_memory_bytes"),
        peak_gpu_memory_bytes=largest("peak_gpu_memory_bytes"),
    )


def ranking_metrics(line: RankedLearner) -> dict[str, float]:
    """Return what stands on the MLflow runs of a learner's models beside their own figures."""
    metrics: dict[str, float] = {}
    if len(line.seeds) > 1:
        metrics["seeds/test/accuracy"] = line.accuracy
        metrics["seeds/validation/accuracy"] = line.validation_accuracy
        if line.ci95 is not None:
            metrics["seeds/test/ci95"] = line.ci95
    if line.against_selected is not None:
        for name, value in line.against_selected.model_dump().items():
            metrics[f"against_selected/{name}"] = value
    return metrics


def write_ranking(folder: Path, ranking: Ranking) -> tuple[Path, Path]:
    """Write a ranking as JSON, and as a table that MLflow's page shows; return the two files."""
    json_file, table = folder / JSON_NAME, folder / TABLE_NAME
    write_json(json_file, ranking.model_dump(mode="json"))
    columns = [f"against_selected_{name}" for name in Difference.model_fields]
    rows = [
        {
            **line.model_dump(exclude={"seeds", "against_selected"}),
            "seeds": len(line.seeds),
            "selected": line.name == ranking.selected,
            **dict.fromkeys(columns),
            **{f"against_selected_{name}": value for name, value in line.against_selected or ()},
        }
        for line in ranking.learners
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(table, text.getvalue().encode())
    return json_file, table
