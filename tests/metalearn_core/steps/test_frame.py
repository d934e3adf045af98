"""What surrounds a step does not keep a process that has to end."""

import os

import pytest

from metalearn_core import tracking
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.frame import PIPELINE_RUN_VARIABLE, step
from metalearn_core.training.termination import TrainingStoppedError


@pytest.mark.parametrize(
    ("error", "timeout"), [(TrainingStoppedError("maml: stopped"), "3"), (MetalearnError("diverged"), "30")]
)
def test_a_step_that_has_to_end_waits_seconds_for_the_tracking_server(
    monkeypatch: pytest.MonkeyPatch, error: Exception, timeout: str
) -> None:
    timeouts: list[str] = []
    monkeypatch.setenv(PIPELINE_RUN_VARIABLE, "ended")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

    def asked(_: str) -> None:
        timeouts.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    monkeypatch.setattr(tracking, "find_parent_run", asked)
    with pytest.raises(SystemExit), step("meta_train", "maml"):
        raise error
    assert timeouts == [timeout]
