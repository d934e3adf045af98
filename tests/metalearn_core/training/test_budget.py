import time

import pytest

from metalearn_core.training.budget import Pace, is_spent, share_of_budget, validation_is_due
from metalearn_core.training.checkpoint import Progress
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.plan import TrainingPlan


def plan(**values):
    return TrainingPlan(**{"way": 5, "shot": 1, "query": 5, "episodes": 100, "validations": 10, **values})


def progress(**values):
    return Progress(fingerprint="f", engine=EngineChoices(threads=1, precision="fp32", chunks=1), **values)


def test_episodes_count_where_they_are_the_budget():
    assert share_of_budget(plan(), progress(episodes=25), now=1e9) == 0.25


def test_of_seconds_the_last_validations_are_kept_for_the_next():
    seconds = plan(episodes=None, seconds=100.0)
    assert share_of_budget(seconds, progress(), now=50) == 0.5
    assert share_of_budget(seconds, progress(last_validation_seconds=20.0), now=40) == 0.5
    assert share_of_budget(seconds, progress(last_validation_seconds=90.0), now=25) == 0.5  # at most half is kept


@pytest.mark.parametrize(("phase", "over"), [("train", True), ("pretrain", False)])
def test_patience_ends_training_but_not_pretraining(phase, over):
    tried = progress(episodes=10, since_best=3, phase=phase)
    assert is_spent(plan(patience=3), tried, now=0) is over
    assert not is_spent(plan(patience=4), tried, now=0)


def test_validations_are_spread_over_the_budget_and_none_is_run_twice():
    due = [n for n in range(1, 100) if validation_is_due(plan(), progress(episodes=n, validations=3), 0, spent=False)]
    assert due[0] == 40
    assert not validation_is_due(plan(), progress(episodes=40, validations=3, validated_at=40), 0, spent=False)
    assert validation_is_due(plan(), progress(episodes=7, validations=3), 0, spent=True)


def test_validation_may_take_a_share_of_the_seconds_alone():
    seconds = plan(episodes=None, seconds=100.0)
    cheap, dear = (progress(episodes=9, validation_seconds=spent) for spent in (7.0, 8.0))
    assert validation_is_due(seconds, cheap, now=50, spent=False)
    assert not validation_is_due(seconds, dear, now=50, spent=False)


def test_a_first_validation_that_was_put_off_waits_until_it_may_take_so_long():
    seconds = plan(episodes=None, seconds=100.0)
    off = progress(episodes=9, validation_seconds=1.0, last_validation_seconds=9.0)
    assert not validation_is_due(seconds, off, now=60, spent=False)
    assert validation_is_due(seconds, off, now=70, spent=False)
    assert validation_is_due(seconds, off, now=10, spent=True)
    known = off.model_copy(update={"history": ({"episodes": 5.0},)})
    assert validation_is_due(seconds, known, now=60, spent=False)


def test_a_validation_takes_as_long_as_its_first_episodes_say(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace, seconds = Pace(200), plan(episodes=None, seconds=100.0)
    now[0] = 103.0
    assert (pace.seconds(), pace.expected()) == (3.0, 3.0)
    pace.count(0)
    pace.count(20)
    assert pace.expected() == 30.0
    assert not pace.takes_too_long(seconds, progress()), "3 seconds are no measure yet"
    now[0] = 104.0
    assert pace.takes_too_long(seconds, progress())
    assert not pace.takes_too_long(plan(), progress())
    assert not pace.takes_too_long(seconds, progress(history=({"episodes": 1.0},)))
    pace.count(50)
    assert not pace.takes_too_long(seconds, progress()), "12 of the 15 seconds that it may take"
