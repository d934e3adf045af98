"""Measures what a person waits for: `metalearn --help`, the whole pipeline on glyphs, and the same run again.

Run it as `python -m benchmarks.command_line`; it takes about four minutes. Memory is the largest sum of the resident
sizes of all the run's processes, looked at five times a second (pages that they share are counted in each).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

METALEARN = [sys.executable, "-c", "from pipelines.command_line import main; main()"]


def main() -> None:
    """Measure, and print a table."""
    table = Table("what", "measured", "at most", title="Command line")
    table.add_row(
        "metalearn --help, median of 7", f"{statistics.median(help_seconds() for _ in range(7)):.2f} s", "0.5 s"
    )
    with tempfile.TemporaryDirectory() as workdir:
        seconds, gigabytes, summary = watched_run(Path(workdir))
        table.add_row("metalearn run", f"{seconds:.0f} s, {gigabytes:.2f} GB", "180 s, 3 GB")
        for result in summary["results"]:
            accuracy = f"{100 * result['accuracy']:.2f} ± {100 * result['ci95']:.2f} %"
            table.add_row(f"  {result['name']}, 5-way 1-shot, 1,000 episodes, inductive", accuracy, "")
        bundles = {result["learner"]: result["bundle"] for result in summary["results"]}
        for name in ("protonet", "maml"):
            command = ["compare", bundles[name], bundles["transfer"], summary["dataset"]["uri"], "--json"]
            done = subprocess.run([*METALEARN, *command], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            figures = f"{found['difference']:+.2%} ({found['low']:+.2%} to {found['high']:+.2%})"
            table.add_row(f"  {name} − transfer, paired", figures, "")
        again, _, _ = watched_run(Path(workdir))
        table.add_row("the same run again", f"{again:.0f} s", "20 s")
    Console().print(table)


def help_seconds() -> float:
    """Return how long `metalearn --help` takes."""
    start = time.perf_counter()
    subprocess.run([*METALEARN, "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def watched_run(workdir: Path) -> tuple[float, float, dict[str, Any]]:
    """Return the seconds and gigabytes of a run with all defaults, and its summary."""
    start = time.perf_counter()
    with (workdir / "summary.json").open("w") as output:
        process = psutil.Popen(
            [*METALEARN, "run", "--json", "--workdir", str(workdir)], stdout=output, stderr=subprocess.DEVNULL
        )
        most = 0
        while process.poll() is None:
            most = max(most, resident(process))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"metalearn run ended with status {process.returncode}")
    return time.perf_counter() - start, most / 1e9, json.loads((workdir / "summary.json").read_text())


def resident(process: psutil.Process) -> int:
    """Return the resident bytes of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
