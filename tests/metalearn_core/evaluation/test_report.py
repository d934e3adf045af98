import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.ranking import Difference, RankedLearner, Ranking, SeedResult
from metalearn_core.evaluation.report import (
    CheckReport,
    DecisionReport,
    LearnerReport,
    ReportContent,
    write_report,
)
from metalearn_core.learners import LearnerSpec, make_learner

HOSTILE = "<script>alert('x')</script>"
HISTORY = tuple({"episodes": 10.0 * i, "seconds": float(i), "validation/accuracy": 0.5 + 0.1 * i} for i in range(4))


class Page(HTMLParser):
    """The tags that are open, the addresses that are named, and the text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, source):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], [], []
        self.feed(source)
        self.close()
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def content(dataset):
    learner = make_learner(LearnerSpec(learner="protonet", backbone_options={"width": 8}), dataset.spec, seed=1)
    evaluation = evaluate(learner, dataset, Protocol(query=3, episodes=60, seed=7))
    worse = evaluation.model_copy(update={"accuracy": 0.25, "by_domain": {"wide": None}, "confusions": ()})
    manifest = dataset.manifest.model_copy(update={"source": HOSTILE})
    return ReportContent(
        title=f"A run {HOSTILE}",
        asked={"Source": HOSTILE, "Episodes": "5-way 1-shot"},
        manifest=manifest,
        learners=(
            LearnerReport(name="weak", evaluation=worse),
            LearnerReport(
                name="protonet",
                evaluation=evaluation,
                validation_accuracy=0.625,
                history=HISTORY,
                train_seconds=35.2,
                train_episodes=12345,
                parameters=111_680,
                options={"learning_rate": 0.01},
                selected=True,
            ),
        ),
        checks=(CheckReport(name="classes", passed=True, observed="18", expected="5", blocking=True),),
        decision=DecisionReport(model="models:/few-shot/3", promoted=False, reasons=("difference too small",)),
        lineage={"Commit": "abc123"},
        command="metalearn run glyphs --seed 0",
    )


@pytest.fixture(scope="module")
def source(content, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, content, dataset)
    return path.read_text()


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_page_is_well_formed(page):
    assert page.open == []


def test_the_page_needs_nothing_from_elsewhere(page, source):
    inside = re.compile(r"data:image/png;base64,|#")
    assert all(inside.match(address) for address in page.addresses)
    assert not re.search(r"url\((?!#)", source)
    assert "script" not in page.tags
    assert len(source) < 5_000_000


def test_names_from_data_cannot_become_markup(page):
    assert HOSTILE in page.text


def test_figures_stand_beside_their_protocol(page, content):
    evaluation = content.learners[1].evaluation
    assert f"{100 * evaluation.accuracy:.2f} ± {100 * evaluation.ci95:.2f}" in page.text
    assert f"± {100 * evaluation.ci95_classes:.2f}" in page.text
    for words in (
        "60 test episodes, 5-way 1-shot",
        "3 queries a class, seed 7, batch norm inductive",
        "62.50",
        "12,345",
    ):
        assert words in page.text
    assert evaluation.ci95_classes_method in page.text


def ranked(name, accuracy, against, seeds=1):
    return RankedLearner(
        name=name,
        accuracy=accuracy,
        ci95=0.02,
        ci95_classes=0.05,
        ece=0.01,
        validation_accuracy=0.7,
        seeds=[SeedResult(seed=n, accuracy=accuracy, ci95=0.01, validation_accuracy=0.7) for n in range(seeds)],
        train_seconds=1,
        train_episodes=2,
        adaptation_ms=3,
        parameters=4,
        peak_memory_bytes=5,
        peak_gpu_memory_bytes=0,
        against_selected=against,
    )


@pytest.mark.parametrize("unit", ["episodes", "seeds"])
def test_learners_stand_against_the_selected_one_with_what_that_shows(content, tmp_path, unit):
    seeds = 3 if unit == "seeds" else 1
    less = Difference(difference=-0.1234, low=-0.2, high=-0.05, p_value=0.001, p_holm=0.002)
    lines = (ranked("weak", 0.6789, less, seeds), ranked("protonet", 0.8, None, seeds))
    ranking = Ranking(
        selected="protonet", unit=unit, alpha=0.05, method="by Holm", speaks_of="these models", learners=lines
    )
    write_report(tmp_path / "r.html", content.model_copy(update={"ranking": ranking}))
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    for words in (
        "−12.34",
        "−20.00 to −5.00",
        "0.002",
        "by Holm",
        "They speak of these models",
        "selected on validation",
    ):
        assert words in page.text
    assert ("67.89 (2)" in page.text) == (unit == "seeds")


def test_calibration_is_drawn_beside_the_line_of_a_calibrated_learner(source, page, content):
    assert "Calibration" in page.text
    assert "calibrated" in page.text
    assert f"{content.learners[1].evaluation.ece:.3f}" in page.text
    assert source.count("<svg") == 2


def test_the_decision_and_how_to_repeat_it_are_shown(page):
    for words in ("protonet was not promoted", "difference too small", "abc123", "metalearn run glyphs --seed 0"):
        assert words in page.text


def test_domains_without_a_number_give_the_reason(page):
    assert "tiny: way 5: domain 'tiny' of the test split has 2 classes" in page.text


def test_pictures_show_what_is_confused_and_what_the_data_are(page, content):
    confused = content.learners[1].evaluation.confusions[0]
    assert confused.name in page.text
    assert f"{confused.count} of {confused.queries}" in page.text
    assert sum(address.startswith("data:image/png") for address in page.addresses) > 20


def test_curves_take_the_colour_of_the_page(source):
    svg = source[source.index("<svg") : source.index("</svg>")]
    assert "currentColor" in svg
    assert "viewBox" in svg
    assert "seconds of training" in svg
    assert "#010203" not in svg
    assert not re.search(r"<svg[^>]* width=", svg)


def test_a_report_without_pictures_history_or_decision_is_whole(content, tmp_path):
    bare = content.model_copy(
        update={"learners": content.learners[:1], "checks": (), "decision": None, "lineage": {}, "command": ""}
    )
    write_report(tmp_path / "r.html", bare)
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    assert "img" not in page.tags
    assert page.tags.count("svg") == 1, "calibration alone is drawn"
    assert "The gate" not in page.text


def test_the_same_content_gives_the_same_page(content, dataset, source, tmp_path):
    write_report(tmp_path / "again.html", content, dataset)
    assert (tmp_path / "again.html").read_text() == source


@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_the_whole_page(source, tmp_path, width):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(source)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", f"--screenshot={picture}",
    ]  # fmt: skip
    subprocess.run([browser, *options, file.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(picture) as drawn:
        assert drawn.width == width
        grey = np.asarray(drawn.convert("L"))
    ink = (grey < 128).any(axis=1)
    assert ink[: len(ink) // 4].any(), "the top of the page is drawn"
    assert ink.mean() > 0.2, "text and figures stand all the way down"
