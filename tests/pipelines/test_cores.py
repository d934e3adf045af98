"""Threads that wait leave their core to others, in every process that the command starts and in the image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.command_line.main import SPIN_COUNT, SPIN_VARIABLE

SHOW = (
    "import os, sys; from pipelines.command_line import main as verbs; sys.argv = ['metalearn', 'learners', '--json']; "
    "sys.stdout = sys.stderr\ntry: verbs()\nexcept SystemExit: print(os.environ.get('GOMP_SPINCOUNT'), 'end')"
)


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, SPIN_COUNT), ({SPIN_VARIABLE: "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["not-said", "count-said", "policy-said"],
)
def test_they_spin_for_a_short_time_unless_the_environment_says_otherwise(given: dict[str, str], found: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in {SPIN_VARIABLE, "OMP_WAIT_POLICY"}}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env={**clean, **given}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.splitlines()[-1] == f"{found} end"


def test_the_image_says_the_same() -> None:
    containerfile = Path(__file__).parents[2] / "infra" / "images" / "Containerfile"
    assert f"{SPIN_VARIABLE}={SPIN_COUNT} \\\n" in containerfile.read_text()
