"""A run that takes seconds: its options, and what it wrote of its steps."""

import json
from pathlib import Path

SMALL = (
    "--learner", "protonet", "--learner", "transfer", "--way", 3, "--shot", 1, "--query", 3, "--image-size", 16,
    "--train-episodes", 6, "--eval-episodes", 20, "--split-by", "class", "--ratios", "0.5,0.25,0.25",
    "--set", "backbone.width=8",
)  # fmt: skip
ONE = (*SMALL[2:], "--json")


def events_of(workdir: Path) -> list[dict]:
    files = list(workdir.glob("runs/*/events.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
