"""Going on after kill -9: what it costs, and that the weights are those of a training that was never killed.

    python -m benchmarks.resume [--learner maml] [--episodes 4000] [--kills 5] [--seed 0]

`metalearn train` with a checkpoint every second is killed at random moments, also before its first checkpoint and while
one is written, and started again each time. What a kill costs is the time that all attempts took together less that of
the training that was never killed, over the kills: start, reading the checkpoint, and the steps since it done again.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metalearn_core.data.build import build_dataset


def main() -> int:
    """Measure, and print a table in Markdown; return 1 where the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", default="maml")
    parser.add_argument("--episodes", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_dataset("glyphs", folder / "glyphs")
        started = time.perf_counter()
        process = _start(folder, arguments.learner, arguments.episodes, "whole")
        if process.wait():
            raise SystemExit("the training failed")
        whole = time.perf_counter() - started
        attempts, kills = _with_kills(folder, arguments, whole)
        digests = [_digest(folder / name) for name in ("whole", "killed")]
        steps = json.loads((folder / "whole.json").read_text())["train_seconds"]
    same = digests[0] == digests[1]
    print("| learner | steps, s | whole, s | kills | all attempts, s | a kill costs, s | weights |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cost = (attempts - whole) / max(1, kills)
    print(
        f"| {arguments.learner} | {steps:.1f} | {whole:.1f} | {kills} | {attempts:.1f} | {cost:.1f} "
        f"| {'the same bytes' if same else 'DIFFERENT'} |"
    )
    return 0 if same else 1


def _start(folder: Path, learner: str, episodes: int, name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from pipelines.command_line import main; main()", "train", str(folder / "glyphs")]
    command += ["--learner", learner, "--episodes", str(episodes), "-o", str(folder / name), "--json"]
    command += ["--checkpoint-seconds", "1", "--checkpoint-dir", str(folder / f"{name} checkpoints")]
    with (folder / f"{name}.json").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)


def _with_kills(folder: Path, arguments: argparse.Namespace, whole: float) -> tuple[float, int]:
    """Return the seconds of all attempts, and how many kills there were."""
    moments = random.Random(arguments.seed)
    spent, kills = 0.0, 0
    while True:
        started = time.perf_counter()
        process = _start(folder, arguments.learner, arguments.episodes, "killed")
        try:
            process.wait(moments.uniform(0, 2 * whole / arguments.kills) if kills < arguments.kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        spent += time.perf_counter() - started
        if process.returncode == 0:
            return spent, kills


def _digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
