"""Show a run on the cluster: a table of its steps on a terminal, a line for each change elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.cluster.waiting import Progress, Step

_MARKS = {"SUCCEEDED": ("✓", "green"), "SKIPPED": ("–", "dim"), "FAILED": ("✗", "red"), "CANCELED": ("✗", "yellow")}


class RunView:
    """What a person sees of a run, on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
        self._told: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table on the terminal while the block runs."""
        if self._live is None:
            yield
        else:
            with self._live:
                yield

    def show(self, seen: "Progress") -> None:
        """Show a run as it is now."""
        if self._live is not None:
            self._live.update(_table(seen))
            return
        for step in seen.steps:
            self._tell(step.name, f"{step.name}: {_words(step)}")
        self._tell("", f"run: {seen.state.lower()}")

    def note(self, text: str) -> None:
        """Say a line."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def _tell(self, key: str, line: str) -> None:
        if self._told.get(key) != line:
            self.note(line)
        self._told[key] = line


def _words(step: "Step") -> str:
    rounds = f" ({step.done} of {step.rounds} done)" if step.rounds > 1 else ""
    return f"{step.state.lower()}{rounds}"


def _table(seen: "Progress") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for step in seen.steps:
        mark, style = _MARKS.get(step.state, ("", ""))
        sign = Text(mark, style=style) if mark else Spinner("dots")
        table.add_row(
            sign, Text(step.name), Text(_words(step), style=style or "dim"), Text(_duration(step), style="dim")
        )
    if not seen.steps:
        table.add_row(Spinner("dots"), Text(f"run: {seen.state.lower()}"))
    return table


def _duration(step: "Step") -> str:
    if step.start is None:
        return ""
    seconds = max(0, int(((step.end or datetime.now(UTC)) - step.start).total_seconds()))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
