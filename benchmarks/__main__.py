"""Run the benchmarks one after the other, each a process of its own.

python -m benchmarks                                    what needs no data: about fifteen minutes
python -m benchmarks --full                             and a million examples, and sinusoids
python -m benchmarks --omniglot images_background       the data layer and the metric learner on Omniglot too
python -m benchmarks --omniglot images_background --full    all of it, and training against plain loops: 85

Two are run by themselves: benchmarks.learners, which trains every learner and keeps its results, takes hours;
benchmarks.report opens the report of a run in Chromium.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run them, and return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", type=Path, help="Omniglot's images_background, unpacked")
    parser.add_argument(
        "--full",
        action="store_true",
        help="a million examples and sinusoids too; with --omniglot, training against plain loops",
    )
    arguments = parser.parse_args()
    source = str(arguments.omniglot or "glyphs")
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "glyphs"
        build = [sys.executable, "-c", "from pipelines.command_line import main; main()"]
        subprocess.run([*build, "dataset", "build", "glyphs", dataset], check=True, capture_output=True)
        runs = [["benchmarks.command_line"], ["benchmarks.data", source], ["benchmarks.evaluation", str(dataset)]]
        runs += [["benchmarks.engine", "--dataset", str(dataset)], ["benchmarks.resume"], ["benchmarks.serving"]]
        if arguments.omniglot:
            runs.append(["benchmarks.metric", source])
        if arguments.full:
            runs.append(["benchmarks.scale"])
            runs.append(["benchmarks.sinusoid"])
        if arguments.full and arguments.omniglot:
            runs.append(["benchmarks.omniglot", source])
        failed = [run[0] for run in runs if subprocess.run([sys.executable, "-m", *run], check=False).returncode]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
