"""Take the pictures of MLflow's pages that docs/ shows: of the newest run of a work directory.

    python docs/screenshots.py .metalearn

Needs Chromium, and a work directory in which the pipeline has run in a clean checkout.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
PORT = 5123
TRAINING = "workflowType=machine_learning"
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]


def main(workdir: Path) -> None:
    """Serve MLflow's page on a work directory, and take the pictures."""
    line = ["metalearn", "ui", "--workdir", str(workdir), "--port", str(PORT), "--json"]
    line[0] = str(Path(sys.executable).with_name("metalearn"))
    server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        told = json.loads("".join(takewhile(lambda text: text != "}\n", server.stdout)) + "}")
        _await(f"{told['address']}/health")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.set_default_timeout(60_000)
            _take(page, told)
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def _await(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{address} does not answer")


def _take(page: Page, told: dict[str, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=told["tracking_uri"])
    experiment = client.get_experiment_by_name("few-shot")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    place = f"{told['address']}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}"

    page.goto(told["runs"])
    page.get_by_text("test/accuracy").first.wait_for()
    page.locator("[role=gridcell] button").first.click()
    page.get_by_text(children[0].info.run_name).first.wait_for()
    with_banner = page.get_by_role("button", name="Close")
    if with_banner.count():
        with_banner.first.click()
    _save(page, "mlflow-runs", 560)

    chosen = quote(json.dumps([run.info.run_id for run in children]))
    compared = f"runs={chosen}&experiments={quote(json.dumps([experiment.experiment_id]))}"
    page.goto(f"{told['address']}/#/compare-runs?{compared}&{TRAINING}")
    page.get_by_text("Comparing 3 Runs").first.wait_for()
    metrics = page.locator("input[type=search]").nth(1)
    metrics.click()
    page.keyboard.press("Backspace")  # the metric that MLflow chooses
    metrics.fill("test/accuracy")
    page.wait_for_timeout(500)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.mouse.click(900, 30)
    _save(page, "mlflow-compare", 900)

    page.goto(f"{place}/artifacts/report.html?{TRAINING}")
    page.frame_locator("iframe").get_by_text("Learners compared").first.wait_for()
    _save(page, "mlflow-report", 900)

    page.goto("about:blank")
    page.goto(f"{place}/artifacts/plots/accuracy-by-class.png?{TRAINING}")
    page.locator("img[src*='accuracy-by-class'], img[src^='blob:']").first.wait_for()
    _save(page, "mlflow-plots", 900)

    page.goto(f"{told['address']}/#/models/few-shot?{TRAINING}")
    page.get_by_text("candidate").first.wait_for()
    _save(page, "mlflow-versions", 760)

    version = client.get_model_version_by_alias("few-shot", "champion").version
    page.goto(f"{told['address']}/#/models/few-shot/versions/{version}?{TRAINING}")
    page.get_by_text("bundle_digest").first.wait_for()
    _save(page, "mlflow-version", 900)


def _save(page: Page, name: str, height: int) -> None:
    page.wait_for_timeout(1500)  # animations, and the pointer's marks
    page.screenshot(path=IMAGES / f"{name}.png", clip={"x": 0, "y": 0, "width": 1600, "height": height})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
