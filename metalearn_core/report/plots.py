"""The report's charts as pictures of their own, for a page that shows pictures: MLflow's."""

import io
from typing import TYPE_CHECKING

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.report import results
from metalearn_core.report.charts import COLOURS
from metalearn_core.report.content import LearnerReport, ReportContent
from metalearn_core.report.pictures import Album, Picture
from metalearn_core.report.results import PicturedConfusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _ROW, _TITLE = 7.6, 0.62, 0.5  # inches
_COLUMNS = (1, 3.4, 1, 3.4, 3.2)
_DOTS_AN_INCH = 150
_LETTERS = 26


def comparisons(content: ReportContent) -> dict[str, bytes]:
    """Return the charts that compare a run's learners, as PNG by name."""
    charts = results.learning_curves(content)
    if classes := results.class_curves(content):
        charts["accuracy by class"] = classes
    charts["calibration"] = results.reliability(content)
    return {name.replace(" ", "-"): chart.png() for name, chart in charts.items()}


def most_confused(learner: LearnerReport, dataset: EpisodeDataset) -> dict[str, bytes]:
    """Return which classes a learner takes for which, with an example of each, as PNG by name; none of no mistake."""
    found = results.confusions(learner, Album(dataset.manifest, dataset))
    return {"most-confused": _table_of(learner.name, found)} if found else {}


def _table_of(learner: str, confusions: tuple[PicturedConfusion, ...]) -> bytes:
    """Return the picture of a table: a class, the one it is taken for, and how often."""
    from matplotlib.figure import Figure

    height = _TITLE + _ROW * len(confusions)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.suptitle(f"Most confused by {learner}: queries of … taken for …", fontsize=10)
    grid = figure.subplots(len(confusions), len(_COLUMNS), width_ratios=_COLUMNS, squeeze=False)
    for line, one in zip(grid, confusions, strict=True):
        for axes in line:
            axes.set_axis_off()
        _show(line[0], one.true)
        _say(line[1], one.confusion.name, one.confusion.rotation)
        _show(line[2], one.predicted)
        _say(line[3], one.confusion.predicted_name, one.confusion.predicted_rotation)
        _bar(line[4], one.confusion.count, one.confusion.queries)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_AN_INCH, metadata={"Software": None})
    return content.getvalue()


def _show(axes: "Axes", pictures: tuple[Picture, ...]) -> None:
    if pictures:
        axes.imshow(pictures[0].pixels(), cmap="gray", vmin=0, vmax=255)


def _say(axes: "Axes", name: str, rotation: int) -> None:
    kept = name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
    turned = f"\nturned {90 * rotation}°" if rotation else ""
    axes.text(0, 0.5, kept + turned, va="center", fontsize=8, parse_math=False)


def _bar(axes: "Axes", count: int, queries: int) -> None:
    axes.barh([0], [count / queries], color=COLOURS[0], height=0.5)
    axes.text(count / queries + 0.03, 0, f"{count:,} of {queries:,}", va="center", fontsize=8)
    axes.set_xlim(0, 1.6)
    axes.set_ylim(-0.7, 0.7)
