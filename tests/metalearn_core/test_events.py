"""Whoever watches is told, and never in the way of the work."""

import json
from pathlib import Path

import pytest

from metalearn_core import events
from metalearn_core.events import EVENTS_VARIABLE, ON_STDERR, emit


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


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are lines on standard error, and nothing has been said so far."""
    monkeypatch.setenv(EVENTS_VARIABLE, ON_STDERR)
    monkeypatch.setattr(events, "_last_progress", {})


@pytest.mark.usefixtures("logged")
def test_where_nobody_follows_a_file_warnings_and_notes_are_lines_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    emit("start", "build")
    emit("note", "build", text="the source is unchanged")
    emit("warning", "build", text="a.png: is no\nimage: left out")
    emit("error", "build", text="a step says itself why it fails")
    emit("done", "build")
    assert capsys.readouterr() == ("", "the source is unchanged\nwarning: a.png: is no image: left out\n")
    assert not list(tmp_path.iterdir()), "`-` is no file"


@pytest.mark.usefixtures("logged")
def test_a_log_has_the_progress_of_each_work_once_a_minute_and_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds in range(150):
        monkeypatch.setattr(events.time, "monotonic", lambda now=seconds: float(now))
        emit("progress", "maml", done=seconds / 10, total=15, text=f"episode {seconds}")
        emit("progress", "protonet", done=seconds, total=1000)
    emit("progress", "maml", done=15, total=15, text="episode 150")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("maml")] == [
        *(f"maml: {share} %: episode {at}" for share, at in ((0, 0), (40, 60), (80, 120))),
        "maml: 100 %: episode 150",
    ]
    assert len(lines) == 7
