"""How large a run's report is, and how long Chromium takes to open it.

    python -m benchmarks.report REPORT.html [--repeats 5]

`metalearn run` names the file; it is among the artifacts of the run as well.
"""

import argparse
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import sync_playwright

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
WINDOWS = {"desk": (1600, 1000), "phone": (390, 844)}


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("| window | megabytes | seconds until it is loaded and painted, median (range) |")
    print("| --- | --- | --- |")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        for name, (width, height) in WINDOWS.items():
            spent = []
            for _ in range(arguments.repeats):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(arguments.report.resolve().as_uri())
                page.screenshot()
                spent.append(page.evaluate("performance.now()") / 1000)
                page.close()
            size = arguments.report.stat().st_size / 1e6
            print(f"| {name} | {size:.1f} | {statistics.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f}) |")
        browser.close()


if __name__ == "__main__":
    main()
