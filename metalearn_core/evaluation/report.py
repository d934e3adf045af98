"""The report of a pipeline run: one HTML page with everything that a person needs to judge it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import SPLITS, ClassEntry, Manifest, Record, Split
from metalearn_core.data.sampler import gather_examples
from metalearn_core.evaluation.evaluate import Confusion, Evaluation
from metalearn_core.evaluation.figures import curves_svg, png_address, reliability_svg
from metalearn_core.evaluation.ranking import Ranking
from metalearn_core.pages import render_page
from metalearn_core.storage import write_bytes

TEMPLATE = Path(__file__).with_name("report.html.j2")
PICTURES_A_SPLIT = 18
SHOWN_CONFUSIONS = 8
PICTURES_A_CLASS = 3
SHOWN_DOMAINS = 60


class LearnerReport(Record):
    """One learner of the run.

    Attributes:
        name: as people should see it.
        evaluation: on test episodes.
        validation_accuracy: on validation episodes, by which learners are selected.
        options: that differ from the defaults.
        history: a record a validation: episodes, seconds, `validation/accuracy`, `train/loss` …
        train_seconds, train_episodes: what its training cost.
        parameters: numbers that were learned.
        peak_memory_bytes: the largest memory of the process that trained.
        selected: it is the one that was registered.
    """

    name: str
    evaluation: Evaluation
    validation_accuracy: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    train_seconds: float | None = None
    train_episodes: int | None = None
    parameters: int | None = None
    peak_memory_bytes: int | None = None
    selected: bool = False


class CheckReport(Record):
    """One check of the data; one that is not blocking only warns."""

    name: str
    passed: bool
    observed: str
    expected: str
    blocking: bool


class DecisionReport(Record):
    """What the gate decided on the registered version, and why; `model` is its address."""

    model: str
    promoted: bool
    reasons: tuple[str, ...]


class ReportContent(Record):
    """Everything that the report shows but pictures.

    Attributes:
        title: of the page.
        asked: what the person asked for, in their words: source, shape, learners, budget.
        manifest: of the dataset.
        learners: in the order in which they were asked for; with several training seeds the best model of each.
        ranking: each learner against the selected one; None: there is nothing to compare.
        checks: of the data.
        decision: None where nothing was registered.
        lineage: names and values: run, commit, dataset digest, versions.
        command: that does the same again.
    """

    title: str
    asked: dict[str, str]
    manifest: Manifest
    learners: tuple[LearnerReport, ...] = Field(min_length=1)
    ranking: Ranking | None = None
    checks: tuple[CheckReport, ...] = ()
    decision: DecisionReport | None = None
    lineage: dict[str, str] = Field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Picture:
    """One example, by its `data:` address, with the name of its class."""

    address: str
    name: str


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers, with some of its examples."""

    split: Split
    classes: int
    domains: int
    examples: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ConfusionReport:
    """One confusion, with pictures of both classes."""

    confusion: Confusion
    true: tuple[Picture, ...]
    predicted: tuple[Picture, ...]


@dataclass(frozen=True)
class Mark:
    """An accuracy with its intervals on a common scale, all in per cent of the scale's length."""

    centre: float
    inner: tuple[float, float]
    outer: tuple[float, float]


def write_report(path: Path, content: ReportContent, dataset: EpisodeDataset | None = None) -> None:
    """Write the report as one self-contained page.

    Args:
        path: of the HTML file.
        content: what it says.
        dataset: where its pictures come from; without one, or where examples are vectors, there are none.
    """
    pictured = dataset if dataset is not None and dataset.spec.modality == "image" else None
    selected = next((one for one in content.learners if one.selected), content.learners[0])
    low, high, marks = _marks(content)
    page = render_page(
        TEMPLATE,
        content=content,
        protocol=selected.evaluation.protocol,
        selected=selected,
        scale=(low, high),
        rows=list(zip(content.learners, marks, strict=True)),
        curves=_curves(content),
        reliability=_reliability(content, 1 / selected.evaluation.protocol.way),
        domains=_domains(content)[:SHOWN_DOMAINS],
        hidden_domains=max(0, len(_domains(content)) - SHOWN_DOMAINS),
        splits=[_split(content.manifest, split, pictured) for split in SPLITS],
        confusions=_confusions(selected.evaluation, content.manifest, pictured),
        hardest=sorted(selected.evaluation.by_class, key=lambda one: one.accuracy)[:SHOWN_CONFUSIONS],
    )
    write_bytes(path, page.encode())


def _marks(content: ReportContent) -> tuple[float, float, list[Mark]]:
    """Return a common scale in tenths that holds every interval, and each learner's place on it."""
    results = [one.evaluation for one in content.learners]
    lowest = min(one.accuracy - max(one.ci95, one.ci95_classes) for one in results)
    highest = max(one.accuracy + max(one.ci95, one.ci95_classes) for one in results)
    low = max(0.0, np.floor(10 * lowest) / 10)
    high = min(1.0, max(np.ceil(10 * highest) / 10, low + 0.1))

    def at(value: float) -> float:
        return float(np.clip(100 * (value - low) / (high - low), 0, 100))

    marks = [
        Mark(
            at(one.accuracy),
            (at(one.accuracy - one.ci95), at(one.accuracy + one.ci95)),
            (at(one.accuracy - one.ci95_classes), at(one.accuracy + one.ci95_classes)),
        )
        for one in results
    ]
    return low, high, marks


def _curves(content: ReportContent) -> str:
    """Return the validation accuracies over training time; a single one is a point. Nothing where there is none."""
    curves = {
        one.name: points
        for one in content.learners
        if (points := [(r["seconds"], r["validation/accuracy"]) for r in one.history if "validation/accuracy" in r])
    }
    return curves_svg(curves, "seconds of training", "validation accuracy") if curves else ""


def _reliability(content: ReportContent, lowest: float) -> str:
    """Return the accuracy of queries over their confidence, by learner."""
    curves = {
        one.name: [(part.confidence, part.accuracy) for part in one.evaluation.reliability] for one in content.learners
    }
    return reliability_svg(curves, lowest)


def _domains(content: ReportContent) -> list[str]:
    return sorted({name for one in content.learners for name in one.evaluation.by_domain})


def _split(manifest: Manifest, split: Split, dataset: EpisodeDataset | None) -> SplitReport:
    entries = manifest.of_split(split)
    pictures: tuple[Picture, ...] = ()
    if dataset is not None and entries:
        places = np.unique(np.linspace(0, len(entries) - 1, PICTURES_A_SPLIT).astype(int))
        pictures = tuple(picture for place in places for picture in _pictures(dataset, entries[place], 0, 1))
    return SplitReport(
        split,
        sum(len(entry.rotations) for entry in entries),
        len({entry.domain for entry in entries}),
        sum(entry.count for entry in entries),
        pictures,
    )


def _confusions(evaluation: Evaluation, manifest: Manifest, dataset: EpisodeDataset | None) -> list[ConfusionReport]:
    return [
        ConfusionReport(
            one,
            *(
                () if dataset is None else tuple(_pictures(dataset, manifest.classes[number], turns, PICTURES_A_CLASS))
                for number, turns in ((one.class_id, one.rotation), (one.predicted_id, one.predicted_rotation))
            ),
        )
        for one in evaluation.confusions[:SHOWN_CONFUSIONS]
    ]


def _pictures(dataset: EpisodeDataset, entry: ClassEntry, turns: int, count: int) -> Iterator[Picture]:
    """Yield the first examples of a class, turned."""
    import torch

    rows = torch.arange(min(count, entry.count)) + dataset.class_offset[entry.id]
    for example in gather_examples(dataset.examples, rows, torch.full_like(rows, turns)):
        yield Picture(png_address(example.numpy()), entry.name)
