"""Show what long work reports: a bar a step on a terminal, a line a step elsewhere, always on standard error."""

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

_PERIOD_S = 0.1


def _whole(least: int | None = None) -> Column:
    """Return a column that is shown whole, however long the notes are."""
    return Column(no_wrap=True, min_width=least)


def _cut() -> Column:
    """Return a column that takes what the others leave."""
    return Column(no_wrap=True, overflow="ellipsis", ratio=1)


class Watcher:
    """Follows a file of events.

    Attributes:
        error: the last error that was reported.
        summary: the file that a pipeline run's last step wrote.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.error: str | None = None
        self.summary: Path | None = None
        self._console = console
        self._quiet = quiet
        self._bars: dict[str, TaskID] = {}
        self._current: str | None = None
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False, table_column=_whole()),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:>3.0f}%", table_column=_whole()),
            TimeElapsedColumn(table_column=_whole(7)),
            TimeRemainingColumn(compact=True, table_column=_whole(5)),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=_cut()),
            console=console,
            expand=True,
            disable=quiet or not console.is_terminal,
        )

    @contextmanager
    def following(self, events: Path) -> Iterator[None]:
        """Show the events that are appended to a file while the block runs, and those left at its end."""
        ended = threading.Event()

        def follow() -> None:
            with events.open() as file:
                rest = ""
                while True:
                    last = ended.is_set()
                    lines = (rest + file.read()).split("\n")
                    rest = lines.pop()
                    for line in lines:
                        with suppress(ValueError, KeyError):  # a line that a full disk cut off
                            self._show(json.loads(line))
                    if last:
                        return
                    ended.wait(_PERIOD_S)

        with self._progress:
            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _show(self, event: dict[str, Any]) -> None:
        kind, subject = event["kind"], event.get("subject")
        name = f"{event['step']} {subject}" if subject else event["step"]
        if kind == "start":
            self._start(name)
        elif kind == "progress":
            self._advance(self._current or self._start(name), event)
        elif kind == "done":
            self._finish(name)
        elif kind == "result":
            self.summary = Path(event["summary"])
        elif kind == "error":
            self.error = f"{event['step']}: {event['text']}"
        elif kind in {"warning", "note"}:
            self._say(f"{kind}: {event['text']}" if kind == "warning" else event["text"], kind)

    def _start(self, name: str) -> str:
        self._current = name
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=None, note="")
        if not self._console.is_terminal:
            self._say(name, "note")
        return name

    def _advance(self, name: str, event: dict[str, Any]) -> None:
        self._progress.update(
            self._bars[name], completed=event["done"], total=event["total"], note=event.get("text") or ""
        )

    def _finish(self, name: str) -> None:
        bar = self._bars.get(name)
        if bar is not None:
            total = next(task.total for task in self._progress.tasks if task.id == bar) or 1
            self._progress.update(bar, total=total, completed=total)
        if self._current == name:
            self._current = None

    def _say(self, text: str, kind: str) -> None:
        if not self._quiet or kind == "warning":
            self._console.print(Text(text, style="yellow" if kind == "warning" else "dim"), soft_wrap=True)


@contextmanager
def watching(console: Console, *, quiet: bool = False) -> Iterator[Watcher]:
    """Follow the events of work that is done in this process."""
    import os

    from metalearn_core.events import EVENTS_VARIABLE

    watcher = Watcher(console, quiet=quiet)
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        events.touch()
        before = os.environ.get(EVENTS_VARIABLE)
        os.environ[EVENTS_VARIABLE] = str(events)
        try:
            with watcher.following(events):
                yield watcher
        finally:
            if before is None:
                del os.environ[EVENTS_VARIABLE]
            else:
                os.environ[EVENTS_VARIABLE] = before
