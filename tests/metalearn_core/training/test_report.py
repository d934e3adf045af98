import json

from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.training import report
from metalearn_core.training.report import Reporter


def test_steps_are_averaged_and_passed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "REPORT_SECONDS", 0)
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    got = []
    reporter = Reporter("maml", lambda metrics, episodes: got.append((metrics, episodes)))
    reporter.step(2.0, 0.5, 0.1, 4)
    reporter.step(1.0, 0.7, 0.1, 4)
    reporter.report(8, 1.5, 0.1)
    metrics, episodes = got[0]
    assert (metrics["train/loss"], metrics["train/accuracy"], metrics["learning_rate"]) == (1.5, 0.6, 0.1)
    assert (metrics["seconds"], episodes) == (1.5, 8)
    assert metrics["episodes_per_second"] > 0
    reporter.report(8, 1.6, 0.1, {"validation/accuracy": 0.9})
    assert got[1][0]["validation/accuracy"] == 0.9
    event = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert (event["kind"], event["step"], event["done"], event["total"]) == ("progress", "maml", 0.1, 1.0)
    assert "90.0%" in event["text"]


def test_reports_are_at_most_four_a_second():
    got = []
    reporter = Reporter("maml", lambda metrics, episodes: got.append(episodes))
    for episode in range(100):
        reporter.step(1.0, 0.5, 0.1, 1)
        reporter.report(episode, 0.0, episode / 100)
    assert len(got) <= 1
