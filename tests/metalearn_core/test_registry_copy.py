import json
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core.bundle import DESCRIPTION_NAME, verify_bundle
from metalearn_core.bundle_fetch import fetch_bundle
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.registry_copy import copy_version
from metalearn_core.tracking_server import elsewhere


@pytest.fixture(scope="module")
def bundle(workshop: Any, small_dataset: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.make_bundle(tmp_path_factory.mktemp("good") / "b", small_dataset, seed=1)


@pytest.fixture
def production(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/production/mlflow.db"


def test_a_copy_is_the_same_bundle_and_says_where_it_is_from(
    workshop: Any, client: MlflowClient, bundle: Path, production: str
) -> None:
    registered = workshop.register(bundle, "staged")
    client.set_model_version_tag("staged", registered.version, "git_commit", "that of the training")
    for _ in range(2):  # twice is once
        copied = copy_version("staged", "candidate", production, "live")
        assert (copied.name, copied.version) == ("live", "1")
    there = MlflowClient(production)
    (version,) = there.search_model_versions("name = 'live'")
    assert version.tags["bundle_digest"] == registered.bundle_digest
    assert version.tags["git_commit"] == "that of the training"
    assert version.tags["source_model"] == f"models:/staged/{registered.version}"
    assert version.tags["source_run_id"] == client.get_model_version("staged", registered.version).run_id
    assert json.loads(version.tags["evaluation"])["protocol"]["way"] == 3
    assert there.get_registered_model("live").aliases == {"candidate": 1}
    assert there.get_run(version.run_id).info.status == "FINISHED"
    with elsewhere(production):
        assert verify_bundle(fetch_bundle("live", "candidate", None)) == registered.bundle_digest
    assert not client.search_registered_models("name = 'live'")


def test_each_registry_gets_its_own_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "here")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret of here")
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "plugin of here")
    monkeypatch.setenv("METALEARN_TARGET_USERNAME", "there")
    monkeypatch.delenv("METALEARN_TARGET_PASSWORD", raising=False)
    with elsewhere("https://there.example"):
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "there"
        assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
        assert "MLFLOW_TRACKING_AUTH" not in os.environ
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "here"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret of here"


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's file of credentials, which does not say what server they are for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    content = "[mlflow]\nmlflow_tracking_username = here\nmlflow_tracking_password = secret of here\n"
    (tmp_path / ".mlflow" / "credentials").write_text(content)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("own", [{}, {"TOKEN": "of there"}, {"USERNAME": "there"}], ids=str)
def test_what_mlflow_keeps_in_a_file_is_not_sent_to_another_registry(
    workshop: Any, client: MlflowClient, bundle: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str]
) -> None:
    for name, value in own.items():
        monkeypatch.setenv(f"METALEARN_TARGET_{name}", value)
    workshop.register(bundle, "secret")
    with pytest.raises(
        UsageError, match=r"--to http://127.0.0.1:9: .*~/\.mlflow/credentials.*METALEARN_TARGET_USERNAME"
    ):
        copy_version("secret", "candidate", "http://127.0.0.1:9")


@pytest.mark.usefixtures("credentials")
def test_a_whole_login_of_the_other_registry_goes_before_mlflows_file(
    monkeypatch: pytest.MonkeyPatch, production: str
) -> None:
    from mlflow.utils.credentials import read_mlflow_creds

    with elsewhere(production):
        pass  # a database takes no login
    monkeypatch.setenv("METALEARN_TARGET_USERNAME", "there")
    monkeypatch.setenv("METALEARN_TARGET_PASSWORD", "secret of there")
    with elsewhere("https://there.example"):
        assert read_mlflow_creds() == ("there", "secret of there")


def test_the_registry_itself_is_no_other(workshop: Any, client: MlflowClient, bundle: Path, database: str) -> None:
    workshop.register(bundle, "here")
    with pytest.raises(UsageError, match="registered there already"):
        copy_version("here", "candidate", database)


def test_a_server_that_is_away_gets_nothing_and_says_so(
    workshop: Any, client: MlflowClient, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.register(bundle, "away")
    with pytest.raises(MetalearnError, match=r"tracking server http://127.0.0.1:9 does not answer"):
        copy_version("away", "candidate", "http://127.0.0.1:9")


def test_a_bundle_that_was_changed_is_not_copied(
    workshop: Any, client: MlflowClient, bundle: Path, production: str, database: str
) -> None:
    workshop.register(bundle, "changed")
    artifacts = Path(database.removeprefix("sqlite:///")).parent
    for description in artifacts.rglob(DESCRIPTION_NAME):
        description.write_text(description.read_text().replace("protonet", "protonot"))
    with pytest.raises(MetalearnError, match="damaged"):
        copy_version("changed", "candidate", production)
    assert not Path(production.removeprefix("sqlite:///")).exists()
