"""What of the caller's environment reaches the steps in containers."""

import pytest

from pipelines.container_engine import _environment


def test_steps_get_settings_and_never_what_only_a_submission_needs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = {"AWS_ACCESS_KEY_ID": "a", "MLFLOW_TRACKING_URI": "b", "METALEARN_EVENTS": "c", "HTTPS_PROXY": "d"}
    others = {
        "METALEARN_KFP_TOKEN": "secret",
        "METALEARN_KFP_COOKIE": "secret",
        "METALEARN_KFP_TOKEN_FILE": "/secret",
        "METALEARN_HOME": "/x",
        "METALEARN_IMAGE": "x:1",
        "PATH": "/bin",
    }
    assert _environment({**wanted, **others}) == wanted
