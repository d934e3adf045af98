"""Measures the data layer on a folder of images: building, opening again, drawing batches of episodes.

Run it as `python -m benchmarks.data path/to/images_background`, with Omniglot unpacked there.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import Split
from metalearn_core.data.sampler import EpisodeSampler

EPISODES = 32
SHAPE = EpisodeShape(way=5, shot=1, query=15)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some repetitions of `work`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a folder of images, or glyphs")
    parser.add_argument("--workers", type=int, default=None, help="decoding processes (default: one a core)")
    arguments = parser.parse_args()
    table = Table("what", "measured", "at most", title=f"Data layer, {arguments.source}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dataset"
        build = seconds(lambda: build_dataset(arguments.source, out, workers=arguments.workers), repeats=1)
        dataset = EpisodeDataset.open(out)
        examples = len(dataset.examples)
        table.add_row(f"build of {examples:,} images at 28×28", f"{build:.1f} s", "12 s")
        opening = seconds(lambda: EpisodeDataset.open(out), repeats=7)
        table.add_row("opening that dataset again", f"{opening:.3f} s", "0.2 s")
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            sampler = EpisodeSampler(dataset, split, SHAPE, seed=0)
            turned = ", rotations as classes" if sampler.turning else ""
            drawing = 1000 * seconds(lambda sampler=sampler: sampler.batch(0, EPISODES), repeats=51)  # type: ignore[misc]
            table.add_row(f"drawing {EPISODES} {SHAPE} episodes, {split}{turned}", f"{drawing:.2f} ms", "3 ms")
    Console().print(table)


if __name__ == "__main__":
    main()
