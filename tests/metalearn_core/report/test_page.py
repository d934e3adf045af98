import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from metalearn_core.evaluation.ranking import Difference, RankedLearner, Ranking, SeedResult
from metalearn_core.report.page import write_report

MOST_BYTES = 5_000_000
PATIENCE_S = 300  # a page that waits for something that does not come is given up


class Page(HTMLParser):
    """The tags that are open, the addresses that are named, and the text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, source):
        super().__init__()
        self.open, self.addresses, self.text, self.tags, self.elements = [], [], [], [], []
        self.feed(source)
        self.close()
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))
        self.addresses += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="session")
def source(content, dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, content, dataset)
    return path.read_text()


@pytest.fixture(scope="session")
def page(source):
    return Page(source)


def test_the_page_is_well_formed(page):
    assert page.open == []


def test_the_page_needs_nothing_from_elsewhere(page, source):
    inside = re.compile(r"data:image/(png|webp);base64,|#")
    assert all(inside.match(address) for address in page.addresses)
    assert not re.search(r"url\((?!#)", source)
    assert "script" not in page.tags
    assert len(source.encode()) < MOST_BYTES


def test_names_from_data_cannot_become_markup(page, hostile):
    assert hostile in page.text


def test_every_section_is_there_and_named_in_the_contents(page):
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [
        "asked", "results", "curves", "domains", "calibration", "confusions", "answers", "adaptation", "map", "data",
        "checks", "gate", "lineage",
    ]  # fmt: skip
    assert [address for address in page.addresses if address.startswith("#")][: len(sections)] == [
        f"#{name}" for name in sections
    ]


def test_names_of_elements_are_their_own(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_everything_that_is_seen_is_described_in_words(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert pictures
    assert all(attributes["alt"] for attributes in pictures)
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert all(attributes["scope"] in {"col", "row"} for attributes in heads)


def test_figures_stand_beside_their_protocol(page, content):
    evaluation = content.learners[1].evaluation
    assert f"{100 * evaluation.accuracy:.2f} ± {100 * evaluation.ci95:.2f}" in page.text
    assert f"± {100 * evaluation.ci95_classes:.2f}" in page.text
    for words in (
        "24 test episodes, 5-way 1-shot",
        "3 queries per class, seed 7, batch norm inductive",
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
        "They apply to these models",
        "selected on validation",
    ):
        assert words in page.text
    assert ("67.89 (2)" in page.text) == (unit == "seeds")


def test_the_decision_and_how_to_repeat_it_are_shown(page):
    for words in (
        "protonet was not promoted",
        "difference too small",
        "Previous champion: version 2. This was comparison (look) number 4",
        "abc123",
        "metalearn run glyphs --seed 0",
    ):
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


def test_answers_are_shown_with_their_neighbours_and_distances(page, content):
    explanation = content.learners[1].explanation
    wrong = explanation.answers[0]
    taken_for = content.manifest.classes[wrong.predicted_id].name
    assert f"✕ wrong, {100 * wrong.probability:.0f} % sure: taken for {taken_for}" in page.text
    figures = " ".join(f"{near.distance:.3g}" for near in wrong.nearest)
    shown = page.text[page.text.index("✕ wrong") :]
    assert figures in re.sub(r" (own class|taken for)", "", shown)[:400]
    distances = f"own class: {wrong.to_own:.3g}; of the one it was taken for: {wrong.to_predicted:.3g}."
    assert f"Prototype of its {distances}" in shown


def test_where_distances_decide_nothing_that_is_said(page, content, tmp_path):
    assert "does not decide by these distances" not in page.text
    maml = content.model_copy(update={"learners": content.learners[2:]})
    write_report(tmp_path / "r.html", maml)
    shown = Page((tmp_path / "r.html").read_text()).text
    assert "and their distances. maml does not decide by these distances: they show what is alike to it." in shown


def test_what_moves_and_what_does_not_is_said(page):
    assert "protonet: no weight of the network moves" in page.text
    assert "head of maml starts at zero" in page.text


def test_the_map_says_how_much_of_the_differences_it_shows(page, content):
    first, second = content.learners[1].explanation.map.explained
    assert f"which carry {100 * first:.0f} % and {100 * second:.0f} % of the variance" in page.text.replace("\xa0", " ")


def test_a_report_of_vectors_has_no_pictures_and_is_whole(content, tmp_path):
    write_report(tmp_path / "r.html", content)
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    assert "img" not in page.tags
    assert "map" in [attributes.get("class") for _, attributes in page.elements]


def test_a_report_without_pictures_history_or_decision_is_whole(content, tmp_path):
    bare = content.model_copy(
        update={"learners": content.learners[:1], "checks": (), "decision": None, "lineage": {}, "command": ""}
    )
    write_report(tmp_path / "r.html", bare)
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    assert "img" not in page.tags
    assert page.tags.count("svg") == 2, "accuracy by class, and calibration"
    for title in (
        "The gate",
        "Learning curves",
        "explained",
        "What adaptation moves",
        "Map",
        "Quality checks",
        "Lineage",
    ):
        assert title not in page.text


def test_the_same_content_gives_the_same_page(content, dataset, source, tmp_path):
    write_report(tmp_path / "again.html", content, dataset)
    assert (tmp_path / "again.html").read_text() == source


@pytest.mark.parametrize(("width", "options"), [(1200, []), (390, []), (390, ["--force-dark-mode"])])
def test_a_browser_draws_the_whole_page(source, tmp_path, width, options):
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(source)
    browse(file, tmp_path, f"--window-size={width},2000", f"--screenshot={picture}", *options)
    with Image.open(picture) as drawn:
        assert drawn.width == width
        grey = np.asarray(drawn.convert("L")).astype(int)
    background = grey[0, 0]
    assert (background < 128) == bool(options), "the page is dark where that is wanted"
    ink = (abs(grey - background) > 100).any(axis=1)
    assert ink[: len(ink) // 4].any(), "the top of the page is drawn"
    assert ink.mean() > 0.2, "text and figures stand all the way down"


def test_the_page_is_printed_on_a_few_sheets_light_and_whole(source, tmp_path):
    file, sheets = tmp_path / "report.html", tmp_path / "report.pdf"
    file.write_text(source)
    browse(file, tmp_path, "--force-dark-mode", "--no-pdf-header-footer", f"--print-to-pdf={sheets}")
    content = sheets.read_bytes()
    assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
    printed = media_of(source, "print")
    assert "--page: #fff" in printed and "--ink: #000" in printed, "black on white, whatever the screen has"
    assert ".contents { display: none }" in printed


def media_of(source, kind):
    """Return what a page's style says for a medium."""
    rules = re.findall(rf"@media {kind} \{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", source)
    assert rules, kind
    return " ".join(" ".join(rule.split()) for rule in rules)


def test_the_page_is_no_wider_than_a_phone(source, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(source.replace("<body>", PROBE).replace("default-src 'none';", "script-src 'unsafe-inline';", 1))
    dom = browse(file, tmp_path, "--window-size=390,2000", "--dump-dom")
    width, inside = map(int, re.search(r'data-width="(\d+)" data-inside="(\d+)"', dom).groups())
    assert width <= inside


PROBE = """<body><script>addEventListener("load", () => { const page = document.documentElement;
document.body.dataset.width = page.scrollWidth; document.body.dataset.inside = page.clientWidth })</script>"""


def browse(file, folder, *options):
    """Open a page in Chromium, and return what it prints."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = [browser, *quiet, f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout
