"""The page itself: every section's part, put together and written."""

from pathlib import Path

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.pages import render_page
from metalearn_core.report import data, explained, results
from metalearn_core.report.content import ReportContent
from metalearn_core.report.pictures import Album
from metalearn_core.storage import write_bytes

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(path: Path, content: ReportContent, dataset: EpisodeDataset | None = None) -> None:
    """Write the report as one self-contained page.

    Args:
        path: of the HTML file.
        content: what it says.
        dataset: where its pictures come from; without one, or where examples are vectors, there are none.
    """
    album = Album(content.manifest, dataset)
    page = render_page(
        TEMPLATE,
        content=content,
        selected=content.selected,
        protocol=content.selected.evaluation.protocol,
        scale=results.scale(content),
        learning_curves=results.learning_curves(content),
        domains=results.domains(content),
        class_curves=results.class_curves(content),
        hardest=results.hardest(content, album),
        reliability=results.reliability(content),
        confusions=results.confusions(content.selected, album),
        answers=explained.answers(content, album),
        adaptation=explained.adaptation(content),
        class_map=explained.class_map(content, album),
        data=data.describe(content.manifest, album),
    )
    write_bytes(path, page.encode())
