"""MLflow's own page on what a run leaves, in Chromium, as it looks to someone who has never been there."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.pipelines.small_run import SMALL

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
pytestmark = pytest.mark.slow
PATIENCE_MS = 60_000


class Site:
    """What `metalearn ui` shows of a work directory."""

    def __init__(self, summary: dict[str, Any], told: dict[str, str]) -> None:
        self.summary, self.address, self.runs, self.models = summary, told["address"], told["runs"], told["models"]
        self.experiment = re.findall(r"experiments/(\d+)", self.runs)[0]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    metalearn: Callable[..., Any],
    command: Callable[..., list[str]],
    draw_classes: Callable[..., Path],
) -> Iterator[Site]:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    folder = tmp_path_factory.mktemp("site")
    answer = metalearn("run", draw_classes(folder / "images"), "--workdir", folder / "work", *SMALL, "--json")
    assert answer.status == 0, answer.errors
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = command("ui", "--workdir", folder / "work", "--port", port, "--json")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "METALEARN_"))}
    server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=clean)
    try:
        assert server.stdout is not None
        lines = list(takewhile(lambda line: line != "}\n", server.stdout))
        made = Site(answer.json, json.loads("".join(lines) + "}"))
        wait_for_answer(f"{made.address}/health")
        yield made
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def wait_for_answer(address: str) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A browser that has never been here, and reaches nothing but the server."""
    made = browser.new_page(viewport={"width": 1600, "height": 1000})
    made.set_default_timeout(PATIENCE_MS)
    made.route("**/*", lambda route: route.continue_() if route.request.url.startswith(site.address) else route.abort())
    yield made
    made.close()


def shows(page: Any, *texts: str) -> None:
    for text in texts:
        page.get_by_text(text).first.wait_for()


def children(site: Site) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=site.summary["tracking_uri"])
    query = f"tags.`mlflow.parentRunId` = '{site.summary['run_id']}'"
    return list(client.search_runs([site.experiment], query))


def test_the_table_of_runs_opens_on_training_with_names_that_say_what_was_run(page: Any, site: Site) -> None:
    page.goto(site.runs)
    digest = site.summary["dataset"]["digest"]
    shows(page, "3-way 1-shot: protonet + transfer", "test/accuracy", "selected", f"episodes-{digest[:12]}")
    assert page.get_by_text("Judges").count() == 0, "the page for language models"
    page.locator("[role=gridcell] button").first.click()
    shows(page, *(child.info.run_name for child in children(site)))


def test_runs_are_compared_side_by_side(page: Any, site: Site) -> None:
    chosen = json.dumps([site.summary["run_id"], *(child.info.run_id for child in children(site))])
    page.goto(f"{site.address}/#/compare-runs?runs={quote(chosen)}&experiments={quote(json.dumps([site.experiment]))}")
    shows(page, "Comparing 3 Runs from 1 Experiment", "test/accuracy", "validation/accuracy", "cfg/learner")


def test_a_run_tells_what_was_selected_and_shows_its_report(page: Any, site: Site) -> None:
    place = f"{site.address}/#/experiments/{site.experiment}/runs/{site.summary['run_id']}"
    page.goto(place)
    shows(page, "was selected on validation episodes", "promoted", *(child.info.run_name for child in children(site)))
    page.goto(f"{place}/artifacts/report.html")
    report = page.frame_locator("iframe")
    report.get_by_text("Learners compared").first.wait_for()
    report.get_by_text("3-way 1-shot on").first.wait_for()


def test_plots_and_confusion_pictures_are_artifacts_that_the_page_shows(page: Any, site: Site) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=site.summary["tracking_uri"])
    runs = [site.summary["run_id"], *(child.info.run_id for child in children(site))]
    pictures = [(run_id, artifact.path) for run_id in runs for artifact in client.list_artifacts(run_id, "plots")]
    assert {Path(path).stem for _, path in pictures} >= {"calibration", "accuracy-by-class", "most-confused"}
    for run_id, path in pictures:
        page.goto("about:blank")  # or the picture before would do
        page.goto(f"{site.address}/#/experiments/{site.experiment}/runs/{run_id}/artifacts/{path}")
        shown = page.locator(f"img[src*='{Path(path).name}'], img[alt*='{Path(path).stem}'], img[src^='blob:']").first
        shown.wait_for()
        assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 400


def test_a_learners_run_has_curves_over_episodes(page: Any, site: Site) -> None:
    child = next(child for child in children(site) if child.data.tags["learner"] == "protonet")
    page.goto(f"{site.address}/#/experiments/{site.experiment}/runs/{child.info.run_id}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("validation")
    for name in ("accuracy", "ci95", "ece"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_placeholder("Search metric charts").fill("seconds")
    page.get_by_text("seconds", exact=True).first.wait_for()


def test_the_models_page_has_aliases_versions_and_tags(page: Any, site: Site) -> None:
    selected = site.summary["selected"]
    page.goto(site.models)
    page.locator("a[href*='/models/few-shot']").first.wait_for()
    assert page.get_by_text("Judges").count() == 0, "the page for language models"
    page.goto(f"{site.address}/#/models/few-shot")
    shows(page, "candidate", f"Version {selected['version']}")
    page.goto(f"{site.address}/#/models/few-shot/versions/{selected['version']}")
    shows(page, "bundle_digest", "accuracy", selected["bundle_digest"][:12], "dataset_digest")
    page.locator("a[href*='/runs/']").filter(has_text=selected["learner"]).first.wait_for()  # the source run
    shows(page, "Source Model")
