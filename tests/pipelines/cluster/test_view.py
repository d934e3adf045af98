"""What a person sees of a run on the cluster."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from pipelines.cluster.view import RunView
from pipelines.cluster.waiting import Progress, Step

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def step(name: str, state: str, *, done: int = 0, rounds: int = 1, seconds: int | None = None) -> Step:
    end = None if seconds is None else BEGIN + timedelta(seconds=seconds)
    return Step(name, state, done, rounds, BEGIN if seconds is not None else None, end)


def shown(*looks: Progress, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    view = RunView(console)
    with view.shown():
        for look in looks:
            view.show(look)
    return console.file.getvalue()


def test_a_pipe_gets_a_line_for_each_change() -> None:
    text = shown(
        Progress("PENDING"),
        Progress("RUNNING", (step("open-run", "RUNNING"),)),
        Progress("RUNNING", (step("open-run", "RUNNING"),)),
        Progress("RUNNING", (step("open-run", "SUCCEEDED", done=1), step("meta-train", "RUNNING", rounds=3))),
        Progress("RUNNING", (step("open-run", "SUCCEEDED", done=1), step("meta-train", "RUNNING", done=1, rounds=3))),
        terminal=False,
    )
    assert text.splitlines() == [
        "run: pending",
        "open-run: running",
        "run: running",
        "open-run: succeeded",
        "meta-train: running (0 of 3 done)",
        "meta-train: running (1 of 3 done)",
    ]


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (Progress("PENDING"), ["run: pending"]),
        (Progress("RUNNING", (step("open-run", "SUCCEEDED", done=1, seconds=3725),)), ["✓", "open-run", "1:02:05"]),
        (Progress("FAILED", (step("meta-train", "FAILED", done=1, rounds=2),)), ["✗", "failed (1 of 2 done)"]),
    ],
)
def test_a_terminal_gets_a_table_of_the_steps(look: Progress, words: list[str]) -> None:
    text = shown(look, terminal=True)
    for word in words:
        assert word in text
