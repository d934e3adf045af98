import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core import registry
from metalearn_core.bundle import verify_bundle
from metalearn_core.bundle_fetch import fetch_bundle
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.export import ExportDescription
from metalearn_core.model import load_model
from tests.metalearn_core.registry_states import put_in_a_bucket_that_is_away

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(workshop: Any, small_dataset: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.make_bundle(tmp_path_factory.mktemp("bundle") / "protonet", small_dataset)


def test_a_registered_bundle_is_the_candidate_and_says_where_it_comes_from(
    workshop: Any, client: MlflowClient, bundle: Path
) -> None:
    run_id = workshop.new_run()
    registered = workshop.register(bundle, "few-shot", run_id)
    assert (registered.name, registered.version, registered.uri) == ("few-shot", "1", "models:/few-shot/1")
    version = client.get_model_version_by_alias("few-shot", "candidate")
    assert (str(version.version), version.run_id) == ("1", run_id)
    assert version.tags["bundle_digest"] == verify_bundle(bundle) == registered.bundle_digest
    assert version.tags["learner"] == "protonet"
    assert version.tags["pipeline_run_id"] == "pipeline"
    assert json.loads(version.tags["evaluation"])["protocol"]["way"] == 3
    assert verify_bundle(fetch_bundle("few-shot", None, "1")) == registered.bundle_digest
    assert len(client.get_run(run_id).outputs.model_outputs) == 1


def test_what_is_registered_holds_no_pickle(workshop: Any, client: MlflowClient, bundle: Path) -> None:
    workshop.register(bundle, "no-pickle")
    files = [file.path for file in _files(client, "no-pickle", "1")]
    assert {"artifacts/bundle/bundle.json", "artifacts/bundle/weights.safetensors", "serving_model.py"} <= set(files)
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pyc"))]


def test_a_version_has_the_exports_of_a_learner_that_embeds(
    workshop: Any, client: MlflowClient, bundle: Path, small_dataset: EpisodeDataset, tmp_path: Path
) -> None:
    workshop.register(bundle, "exported")
    names = {"backbone/backbone.onnx", "backbone/backbone.pt2", "backbone/backbone.json"}
    files = {file.path for file in _files(client, "exported", "1")}
    assert names <= files
    model_id = client.get_model_version("exported", "1").source.removeprefix("models:/")
    folder = Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    described = ExportDescription.model_validate_json((folder / "backbone" / "backbone.json").read_text())
    assert described.bundle_digest == verify_bundle(bundle)
    workshop.register(workshop.make_bundle(tmp_path / "maml", small_dataset, learner="maml"), "not-exported")
    assert not names & {file.path for file in _files(client, "not-exported", "1")}


def _files(client: MlflowClient, name: str, version: str) -> list[Any]:
    model_id = client.get_model_version(name, version).source.removeprefix("models:/")

    def walk(path: str | None) -> Iterator[Any]:
        for entry in client.list_logged_model_artifacts(model_id, path):
            yield from walk(entry.path) if entry.is_dir else [entry]

    return list(walk(None))


def test_the_same_bundle_is_one_version_however_often_it_is_registered(
    workshop: Any, client: MlflowClient, bundle: Path, small_dataset: EpisodeDataset, tmp_path: Path
) -> None:
    other = workshop.make_bundle(tmp_path / "other", small_dataset, seed=1)
    assert [workshop.register(one, "again").version for one in (bundle, bundle, other, bundle)] == ["1", "1", "2", "1"]
    assert len(client.search_model_versions("name = 'again'")) == 2
    assert str(client.get_model_version_by_alias("again", "candidate").version) == "1"


REGISTER = """
import sys
evaluation = {"accuracy": 0.75, "ci95": 0.01, "protocol": {"way": 3, "shot": 1, "query": 3}}
from pathlib import Path
from metalearn_core.registry import register_bundle
if len(sys.argv) > 4:
    import os
    from mlflow import MlflowClient
    method = getattr(MlflowClient, sys.argv[4])
    def killed(*arguments, **named):
        if sys.argv[5] == "after":
            method(*arguments, **named)
        os.kill(os.getpid(), 9)
    setattr(MlflowClient, sys.argv[4], killed)
found = register_bundle(Path(sys.argv[1]), sys.argv[2], run_id=sys.argv[3], evaluation=evaluation, lineage={})
print(found.version)
"""


def _register_elsewhere(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", REGISTER, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_that_register_the_same_bundle_at_once_make_one_version(
    workshop: Any, client: MlflowClient, bundle: Path
) -> None:
    run_id = workshop.new_run()
    processes = [_register_elsewhere(str(bundle), "at-once", run_id) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [result[0] for result in results] == ["1\n", "1\n"], results
    assert len(client.search_model_versions("name = 'at-once'")) == 1


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("log_model_artifacts", "after"),
        ("create_model_version", "before"),
        ("create_model_version", "after"),
    ],
)
def test_a_registration_that_was_killed_is_completed_by_the_same_command(
    workshop: Any, client: MlflowClient, bundle: Path, method: str, when: str
) -> None:
    name, run_id = f"killed-{method}-{when}", workshop.new_run()
    killed = _register_elsewhere(str(bundle), name, run_id, method, when)
    assert killed.wait(timeout=120) == -signal.SIGKILL, killed.communicate()
    assert workshop.register(bundle, name, run_id).version == "1"
    versions = client.search_model_versions(f"name = '{name}'")
    assert [str(version.version) for version in versions] == ["1"]
    assert str(client.get_model_version_by_alias(name, "candidate").version) == "1"
    assert verify_bundle(fetch_bundle(name, "candidate", None)) == verify_bundle(bundle)
    models = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert [model.status for model in models if model.source_run_id == run_id] == ["READY"]


def test_a_version_whose_copy_is_damaged_is_replaced_by_a_new_one(
    workshop: Any, client: MlflowClient, bundle: Path
) -> None:
    workshop.register(bundle, "damaged")
    model_id = client.get_model_version("damaged", "1").source.removeprefix("models:/")
    folder = Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    weights = folder / "artifacts" / "bundle" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert workshop.register(bundle, "damaged").version == "2"
    assert workshop.register(bundle, "damaged").version == "2"


def test_a_version_whose_copy_is_gone_is_replaced_by_a_new_one(
    workshop: Any, client: MlflowClient, bundle: Path
) -> None:
    workshop.register(bundle, "gone")
    model_id = client.get_model_version("gone", "1").source.removeprefix("models:/")
    shutil.rmtree(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    assert workshop.register(bundle, "gone").version == "2"


def test_a_version_whose_copy_cannot_be_reached_gets_no_second_one(
    workshop: Any, client: MlflowClient, bundle: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.register(bundle, "unreachable")
    client.delete_registered_model_alias("unreachable", "candidate")
    put_in_a_bucket_that_is_away(monkeypatch, database, version=("unreachable", "1"))
    with pytest.raises(MetalearnError, match=r"127\.0\.0\.1:9"):
        workshop.register(bundle, "unreachable")
    assert len(client.search_model_versions("name = 'unreachable'")) == 1
    assert workshop.aliases(client, "unreachable") == {}


def test_a_damaged_bundle_is_not_registered(workshop: Any, client: MlflowClient, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    with pytest.raises(MetalearnError, match=r"weights\.safetensors is .*damaged"):
        workshop.register(copy, "never", "0" * 32)
    assert not client.search_model_versions("name = 'never'")


@pytest.mark.parametrize("name", ["a/b", "", "x'y", "a:b", "a@b", "../up"])
def test_a_name_that_cannot_be_an_address_is_refused(
    workshop: Any, client: MlflowClient, bundle: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="model name"):
        workshop.register(bundle, name, "0" * 32)


def test_a_run_that_does_not_exist_is_named(workshop: Any, client: MlflowClient, bundle: Path) -> None:
    with pytest.raises(MetalearnError, match="there is no MLflow run 0000"):
        workshop.register(bundle, "no-run", "0" * 32)


def test_models_lists_versions_with_aliases_and_accuracy(workshop: Any, client: MlflowClient, bundle: Path) -> None:
    run_id = workshop.new_run()
    workshop.register(bundle, "listed", run_id)
    client.set_registered_model_alias("listed", "champion", "1")
    (found,) = [entry for entry in registry.models() if entry.name == "listed"]
    assert (found.version, found.aliases, found.learner, found.accuracy, found.run_id) == (
        1, ("candidate", "champion"), "protonet", 0.75, run_id,
    )  # fmt: skip
    assert found.bundle_digest == verify_bundle(bundle)
    assert abs(found.created.timestamp() - time.time()) < 60


@pytest.fixture(scope="module")
def served(workshop: Any, database: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow models serve` of a registered version, without pickle and without our sources."""
    folder, port = tmp_path_factory.mktemp("served"), workshop.free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database)
        registered = registry.register_bundle(
            bundle, "served", run_id=workshop.new_run(), evaluation=workshop.evaluation(), lineage={}
        )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", registered.uri, "--env-manager", "local"]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": database,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", str(port)], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _post(address: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def episode(workshop: Any) -> dict[str, Any]:
    def encoded(name: str, number: int) -> str:
        content = io.BytesIO()
        workshop.picture(name, number).save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    return {
        "support": [{"image": encoded(name, number), "label": name} for name in ("cat", "dog") for number in (0, 1)],
        "query": [{"image": encoded("dog", 5)}, {"image": encoded("cat", 6)}],
    }


def test_a_served_model_labels_the_queries_of_an_episode(
    workshop: Any, served: str, episode: dict[str, Any], bundle: Path
) -> None:
    status, answer = _post(served, {"inputs": [episode, episode]})
    assert status == 200, answer
    first, second = answer["predictions"]
    assert first == second
    here = load_model(bundle).predict(
        [workshop.picture(name, number) for name in ("cat", "dog") for number in (0, 1)],
        ["cat", "cat", "dog", "dog"],
        [workshop.picture("dog", 5), workshop.picture("cat", 6)],
    )
    for prediction, label, row in zip(first["predictions"], here.labels, here.probabilities, strict=True):
        assert prediction["label"] == label
        assert len(prediction["nearest"]) == 3
        assert prediction["probabilities"] == pytest.approx(dict(zip(here.classes, row, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": []}, "expected at least one example"),
        ({"query": [{"image": "no base64!"}]}, "it is not base64"),
        ({"query": [{"image": base64.b64encode(b"not an image").decode()}]}, "not an image"),
        ({"query": [{"vector": [1.0, 2.0]}]}, "this model takes images"),
        ({"support": [{"image": "x"}]}, "label"),
        ({"query": "text"}, "list"),
    ],
)
def test_a_bad_request_gets_status_400_and_the_reason(
    served: str, episode: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    status, answer = _post(served, {"inputs": [{**episode, **change}]})
    assert status == 400
    assert message in json.dumps(answer)
