"""The command line as a person runs it, on a small folder of images."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TIMEOUT_S = 300


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> dict:
        return json.loads(self.output)


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    def line(*arguments: object) -> list[str]:
        code = "from pipelines.command_line import main; main()"
        return [sys.executable, "-c", code, *(str(argument) for argument in arguments)]

    return line


@pytest.fixture(scope="session")
def metalearn(command: Callable[..., list[str]]) -> Callable[..., Answer]:
    def run(*arguments: object, **environment: str) -> Answer:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "METALEARN_"))}
        done = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**clean, "COLUMNS": "80", **environment},
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def draw_classes() -> Callable[..., Path]:
    def draw(folder: Path, classes: int = 24, examples: int = 6, domains: int = 6, size: int = 16) -> Path:
        """Draw classes that are easy to tell apart: each a pattern of its own, each example with noise of its own."""
        random = np.random.default_rng(0)
        for number in range(classes):
            pattern = random.integers(0, 2, (4, 4)) * 200
            place = folder / f"domain{number % domains}" / f"class{number:02d}"
            place.mkdir(parents=True)
            for example in range(examples):
                picture = np.kron(pattern, np.ones((size // 4, size // 4))) + random.normal(20, 10, (size, size))
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / f"{example}.png")
        return folder

    return draw


@pytest.fixture
def images(tmp_path: Path, draw_classes: Callable[..., Path]) -> Path:
    return draw_classes(tmp_path / "images")
