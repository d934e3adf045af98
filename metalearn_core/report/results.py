"""How good the learners are: accuracies on a common scale, curves, domains, classes, and calibration."""

from dataclasses import dataclass

import numpy as np

from metalearn_core.evaluation.evaluate import ClassAccuracy, Confusion
from metalearn_core.report.charts import Chart, curves_chart, reliability_chart
from metalearn_core.report.content import LearnerReport, ReportContent
from metalearn_core.report.pictures import Album, Picture

SHOWN_DOMAINS = 60
SHOWN_CONFUSIONS = 8
SHOWN_CLASSES = 8
PICTURES_A_CLASS = 3


@dataclass(frozen=True)
class Mark:
    """An accuracy with its intervals on a common scale, all in per cent of the scale's length."""

    centre: float
    inner: tuple[float, float]
    outer: tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """The ends of a common scale, and the learners' places on it."""

    low: float
    high: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Domains:
    """The domains that are shown, and the number of those that are not."""

    shown: tuple[str, ...]
    hidden: int


@dataclass(frozen=True)
class PicturedConfusion:
    """One confusion, with pictures of both classes."""

    confusion: Confusion
    true: tuple[Picture, ...]
    predicted: tuple[Picture, ...]


@dataclass(frozen=True)
class PicturedClass:
    """How well one class is recognised, with some of its examples."""

    figures: ClassAccuracy
    pictures: tuple[Picture, ...]


def scale(content: ReportContent) -> Scale:
    """Return a common scale in tenths that holds every interval, and each learner's place on it."""
    results = [one.evaluation for one in content.learners]
    lowest = min(one.accuracy - max(one.ci95, one.ci95_classes) for one in results)
    highest = max(one.accuracy + max(one.ci95, one.ci95_classes) for one in results)
    low = max(0.0, float(np.floor(10 * lowest) / 10))
    high = min(1.0, max(float(np.ceil(10 * highest) / 10), low + 0.1))

    def at(value: float) -> float:
        return float(np.clip(100 * (value - low) / (high - low), 0, 100))

    marks = tuple(
        Mark(
            at(one.accuracy),
            (at(one.accuracy - one.ci95), at(one.accuracy + one.ci95)),
            (at(one.accuracy - one.ci95_classes), at(one.accuracy + one.ci95_classes)),
        )
        for one in results
    )
    return Scale(low, high, marks)


def learning_curves(content: ReportContent) -> dict[str, Chart]:
    """Return charts of validation accuracy and training loss over time, by name; a single figure is a point."""
    charts = {}
    for name, label, per_cent in (
        ("validation/accuracy", "validation accuracy", True),
        ("train/loss", "training loss", False),
    ):
        curves = {
            one.name: points
            for one in content.learners
            if (points := [(record["seconds"], record[name]) for record in one.history if name in record])
        }
        if curves:
            charts[label] = curves_chart(curves, "seconds of training", label, per_cent=per_cent)
    return charts


def class_curves(content: ReportContent) -> Chart | None:
    """Return a chart of the accuracies of the test classes, from the hardest to the easiest; none of no classes."""
    curves = {}
    for one in content.learners:
        accuracies = sorted(figures.accuracy for figures in one.evaluation.by_class)
        if accuracies:
            curves[one.name] = list(zip(np.linspace(0, 1, len(accuracies)).tolist(), accuracies, strict=True))
    label = "share of the test classes, hardest first"
    return curves_chart(curves, label, "accuracy", markers=False) if curves else None


def reliability(content: ReportContent) -> Chart:
    """Return the learners' reliability diagram."""
    curves = {
        one.name: [(part.confidence, part.accuracy) for part in one.evaluation.reliability] for one in content.learners
    }
    return reliability_chart(curves)


def domains(content: ReportContent) -> Domains:
    """Return the domains of the test classes, by name."""
    names = sorted({name for one in content.learners for name in one.evaluation.by_domain})
    return Domains(tuple(names[:SHOWN_DOMAINS]), max(0, len(names) - SHOWN_DOMAINS))


def confusions(learner: LearnerReport, album: Album) -> tuple[PicturedConfusion, ...]:
    """Return what a learner confuses most."""
    return tuple(
        PicturedConfusion(
            one,
            album.of_class(one.class_id, one.rotation, PICTURES_A_CLASS),
            album.of_class(one.predicted_id, one.predicted_rotation, PICTURES_A_CLASS),
        )
        for one in learner.evaluation.confusions[:SHOWN_CONFUSIONS]
    )


def hardest(content: ReportContent, album: Album) -> tuple[PicturedClass, ...]:
    """Return the classes that the selected learner recognises least."""
    classes = sorted(content.selected.evaluation.by_class, key=lambda one: one.accuracy)[:SHOWN_CLASSES]
    return tuple(PicturedClass(one, album.of_class(one.class_id, one.rotation, PICTURES_A_CLASS)) for one in classes)
