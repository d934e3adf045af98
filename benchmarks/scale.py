"""Building large datasets: the time and the memory that a number of examples takes.

    python -m benchmarks.scale [--examples 250000 500000 1000000] [--per-class 100]

A generator writes Parquet with PNG images of 28×28 pixels, 100 a class, classes from a seed; each build is a process of
its own. Memory is the largest resident size of that process and of its largest worker.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS_AT_ONCE = 20_000
BUILD = """
import json, resource, sys, time
from pathlib import Path
from metalearn_core.data.build import build_dataset
started = time.perf_counter()
manifest = build_dataset(sys.argv[1], Path(sys.argv[2]))
spent = time.perf_counter() - started
peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": spent, "parent": peak[0], "worker": peak[1], "classes": len(manifest.classes)}))
"""


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--per-class", type=int, default=100)
    arguments = parser.parse_args()
    print("| examples | classes | seconds | µs an example | memory, the build | memory, a worker |")
    print("| --- | --- | --- | --- | --- | --- |")
    for examples in arguments.examples:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "source.parquet"
            write(source, examples, arguments.per_class)
            command = [sys.executable, "-c", BUILD, str(source), str(Path(scratch) / "out")]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            found = json.loads(result.stdout.splitlines()[-1])
        each = found["seconds"] / examples * 1e6
        print(
            f"| {examples:,} | {found['classes']:,} | {found['seconds']:.0f} | {each:.0f} "
            f"| {found['parent']:.0f} MB | {found['worker']:.0f} MB |",
            flush=True,
        )


def write(path: Path, examples: int, per_class: int) -> None:
    """Write so many examples: each a class's pattern of 7×7 cells, enlarged, with noise of its own."""
    schema = pa.schema([("image", pa.binary()), ("class", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, examples, ROWS_AT_ONCE):
            numbers = np.arange(first, min(examples, first + ROWS_AT_ONCE))
            rows = {"image": [_png(number, per_class) for number in numbers]}
            rows["class"] = [f"class{number // per_class:06d}" for number in numbers]
            writer.write_table(pa.table(rows, schema=schema))


def _png(number: int, per_class: int) -> bytes:
    cells = np.random.default_rng([0, number // per_class]).integers(0, 2, (7, 7)) * 200
    noise = np.random.default_rng([1, number]).integers(0, 50, (7, 7))
    pixels = np.kron(cells + noise, np.ones((4, 4))).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


if __name__ == "__main__":
    main()
