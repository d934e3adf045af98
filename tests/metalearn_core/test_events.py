"""Whoever watches is told, and never in the way of the work."""

import json
from pathlib import Path

import pytest

from metalearn_core.events import EVENTS_VARIABLE, emit


def test_events_are_lines_of_json_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    emit("progress", "build", done=1.0, total=2.0)
    emit("note", "build", text="two\nlines")
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["progress", "note"]
    assert events[1]["text"] == "two\nlines"


def test_an_event_that_cannot_be_written_is_lost_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    places = [tmp_path, tmp_path / "gone" / "events", *([full] if full.exists() else [])]
    for place in places:
        monkeypatch.setenv(EVENTS_VARIABLE, str(place))
        emit("note", "build", text="lost")
    assert not list(tmp_path.iterdir())
