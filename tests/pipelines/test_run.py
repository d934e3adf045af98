"""The whole pipeline through KFP's local runner and a real MLflow store, as a person runs it."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.small_run import ONE, SMALL, events_of

MARKER = "marker-of-a-secret-4711"
Run = Callable[..., Any]
Draw = Callable[..., Path]
Command = Callable[..., list[str]]


class Project:
    """A source and a work directory that runs share."""

    def __init__(self, folder: Path, metalearn: Run, images: Path) -> None:
        self.images = images
        self.workdir = folder / "work"
        self.told: list[dict] = []
        self.environment: dict[str, str] = {}
        self._metalearn = metalearn

    def run(self, *more: object) -> dict:
        arguments = ("run", self.images, "--workdir", self.workdir, *SMALL, "--json", *more)
        answer = self._metalearn(*arguments, **self.environment)
        assert answer.status == 0, answer.errors
        return answer.json

    def made(self) -> set[str]:
        """The finished trainings, evaluations and verdicts that are kept."""
        results = self.workdir / "results"
        return {f"{path.parent.name}/{path.name}" for path in results.glob("*/*") if path.is_dir()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, metalearn: Run, draw_classes: Draw) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    made = Project(folder, metalearn, draw_classes(folder / "images"))

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.environment["METALEARN_WEBHOOK_URL"] = f"http://127.0.0.1:{server.server_port}/{MARKER}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def first(project: Project) -> dict:
    return project.run()


def test_the_summary_has_what_the_contract_says(project: Project, first: dict) -> None:
    assert first["workdir"] == str(project.workdir)
    assert first["tracking_uri"] == f"sqlite:///{project.workdir}/mlflow.db"
    assert first["dataset"]["splits"] == {"train": 12, "validation": 6, "test": 6}
    assert first["dataset"]["examples"] == 24 * 6
    assert Path(first["dataset"]["uri"]).name == first["dataset"]["digest"]
    assert [result["learner"] for result in first["results"]] == ["protonet", "transfer"]
    for result in first["results"]:
        assert 0 <= result["accuracy"] <= 1
        assert result["ci95"] > 0
        assert (result["way"], result["shot"], result["query"]) == (3, 1, 3)
        assert (result["episodes"], result["split"], result["batch_norm"]) == (20, "test", "inductive")
        assert (Path(result["bundle"]) / "weights.safetensors").is_file()
    assert first["selected"]["model"] == "models:/few-shot/1"
    best = max(first["results"], key=lambda result: result["validation_accuracy"])
    assert first["selected"]["learner"] == best["learner"]
    assert first["promotion"]["reasons"]


def test_mlflow_has_the_run_its_children_and_the_report(project: Project, first: dict) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=first["tracking_uri"])
    parent = client.get_run(first["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.inputs.dataset_inputs[0].dataset.digest == first["dataset"]["digest"]
    query = f"tags.`mlflow.parentRunId` = '{first['run_id']}'"
    children = client.search_runs([parent.info.experiment_id], query)
    assert {child.data.tags["learner"] for child in children} == {"protonet", "transfer"}
    for child in children:
        assert child.info.run_name.startswith(f"{child.data.tags['learner']} "), child.info.run_name
        assert child.info.run_name.endswith(f"on {parent.data.tags['source']}"), child.info.run_name
        (used,) = child.inputs.dataset_inputs
        assert used.dataset.digest == first["dataset"]["digest"]
        assert child.info.status == "FINISHED"
        assert child.data.metrics["test/accuracy"] >= 0
        assert child.data.params["cfg/learner"] in {"protonet", "transfer"}
        [result] = [one for one in first["results"] if one["learner"] == child.data.params["cfg/learner"]]
        for split, name in (("validation", "validation_accuracy"), ("test", "accuracy")):
            assert child.data.metrics[f"{split}/accuracy"] == pytest.approx(result[name], abs=1e-9), "the latest ones"
    names = [artifact.path for artifact in client.list_artifacts(first["run_id"])]
    report = next(name for name in names if name.endswith(".html"))
    page = Path(client.download_artifacts(first["run_id"], report)).read_text()
    assert "protonet" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {artifact.path for artifact in client.list_artifacts(first["run_id"], "data-quality")} >= {
        "data-quality/quality.html"
    }
    assert "plots/calibration.png" in {artifact.path for artifact in client.list_artifacts(first["run_id"], "plots")}


def test_learners_are_set_against_the_selected_one_everywhere(project: Project, first: dict) -> None:
    comparison = first["comparison"]
    assert comparison["selected"] == first["selected"]["name"]
    for line, result in zip(comparison["learners"], first["results"], strict=True):
        assert (line["accuracy"], line["ci95"]) == pytest.approx((result["accuracy"], result["ci95"]))
        assert (line["against_selected"] is None) == (line["name"] == comparison["selected"])
        assert line["peak_memory_bytes"] == result["peak_memory_bytes"] > 1e8
        assert result["leakage"]["class_names"] == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=first["tracking_uri"])
    table = Path(client.download_artifacts(first["run_id"], "comparison.csv"))
    assert len(table.read_text().splitlines()) == 3
    experiment = client.get_run(first["run_id"]).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{first['run_id']}'")
    told = {child.data.tags["learner"]: child.data.metrics for child in children}
    for line in comparison["learners"]:
        learner = line["name"].split()[0]
        assert told[learner]["train/peak_memory_mb"] == pytest.approx(line["peak_memory_bytes"] / 1e6)
        if line["against_selected"]:
            difference = told[learner]["against_selected/difference"]
            assert difference == pytest.approx(line["against_selected"]["difference"])
    assert "Learners compared" in Path(client.download_artifacts(first["run_id"], "report.html")).read_text()


def test_one_learner_trains_at_a_time(project: Project, first: dict) -> None:
    """Or a budget in seconds would not be the same for each."""
    work = [e for e in events_of(project.workdir) if e["step"] in {"meta_train", "evaluate"} and e["kind"] != "error"]
    steps = [(event["kind"], event["step"], event["subject"]) for event in work if event["kind"] in {"start", "done"}]
    assert len(steps) >= 8
    for begun, ended in zip(steps[::2], steps[1::2], strict=True):
        assert begun == ("start", *ended[1:])


def test_several_seeds_are_models_of_one_learner(project: Project, first: dict) -> None:
    before = project.made()
    summary = project.run("--seeds", 3)
    assert [(r["learner"], r["train_seed"]) for r in summary["results"]] == [
        (learner, seed) for learner in ("protonet", "transfer") for seed in (0, 1, 2)
    ]
    assert len([name for name in project.made() - before if name.startswith("training/")]) == 4, "seed 0 was trained"
    assert [r["accuracy"] for r in summary["results"][::3]] == [r["accuracy"] for r in first["results"]]
    comparison = summary["comparison"]
    assert comparison["unit"] == "seeds"
    for number, line in enumerate(comparison["learners"]):
        models = summary["results"][3 * number : 3 * number + 3]
        assert line["accuracy"] == pytest.approx(np.mean([model["accuracy"] for model in models]))
        assert line["validation_accuracy"] == pytest.approx(np.mean([m["validation_accuracy"] for m in models]))
    best = max(comparison["learners"], key=lambda line: line["validation_accuracy"])
    assert comparison["selected"] == best["name"]
    digests = {model["bundle_digest"] for model in summary["results"] if model["name"] == best["name"]}
    assert summary["selected"]["bundle_digest"] in digests


def test_a_turned_training_image_among_the_test_images_is_left_out_and_named(
    metalearn: Run, draw_classes: Draw, tmp_path: Path
) -> None:
    images = draw_classes(tmp_path / "images")
    classes = sorted(folder for folder in images.glob("*/*"))
    names = [f"{folder.parent.name}/{folder.name}" for folder in classes]
    splits = ["train"] * 12 + ["validation"] * 6 + ["test"] * 6
    rows = "".join(f"{name},{split}\n" for name, split in zip(names, splits, strict=True))
    (tmp_path / "split.csv").write_text("class,split\n" + rows)
    with Image.open(classes[0] / "0.png") as trained:
        trained.rotate(90).save(classes[-1] / "planted.png")
    split = ("--split-file", tmp_path / "split.csv")
    answer = metalearn("run", images, "--workdir", tmp_path / "work", *ONE, *split)
    assert answer.status == 0, answer.errors
    [result] = answer.json["results"]
    assert result["leakage"]["class_names"] == [names[-1]]
    assert (result["leakage"]["duplicates"], result["leakage"]["turned"]) == (1, 1)
    assert "planted.png (turned 270°)" in answer.errors
    here = ("--workdir", tmp_path / "work")
    told = metalearn("evaluate", result["bundle"], answer.json["dataset"]["uri"], "--episodes", 20, *here)
    assert "1 class is left out" in told.output
    assert "calibration error" in told.output


def test_a_webhook_is_told_what_the_run_came_to_and_its_address_is_kept_nowhere(project: Project, first: dict) -> None:
    body = next(body for body in project.told if body["run"] == first["run_id"])
    assert (body["status"], body["step"]) == ("finished", "close_run")
    assert first["selected"]["model"] in body["reason"]
    assert (project.workdir / "runs" / body["pipeline_run"]).is_dir()
    kept = [path for path in project.workdir.rglob("*") if path.is_file()]
    assert len(kept) > 20
    assert [path for path in kept if MARKER.encode() in path.read_bytes()] == []


def test_nothing_that_is_kept_is_a_pickle(project: Project, first: dict) -> None:
    for path in project.workdir.rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth"}, path


def test_the_same_run_again_makes_nothing_and_promotes_nothing_new(project: Project, first: dict) -> None:
    before = project.made()
    again = project.run()
    assert project.made() == before
    assert again["results"] == first["results"]
    assert again["selected"]["version"] == first["selected"]["version"]
    assert again["promotion"]["promoted"] == first["promotion"]["promoted"]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=again["tracking_uri"])
    experiment = client.get_run(again["run_id"]).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{again['run_id']}'")
    assert len(children) == 2
    assert all(child.data.tags["cached_from"] for child in children)


def test_a_damaged_result_is_made_again_and_the_others_are_kept(project: Project, first: dict) -> None:
    weights = Path(first["results"][0]["bundle"]) / "weights.safetensors"
    times = {path: path.stat().st_mtime_ns for path in project.workdir.glob("results/training/*/contents.json")}
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = project.run()
    assert [result["accuracy"] for result in again["results"]] == [result["accuracy"] for result in first["results"]]
    changed = [path for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert changed == [weights.parent.parent / "contents.json"]


def test_a_damaged_dataset_is_built_again(project: Project, first: dict) -> None:
    shard = next(Path(first["dataset"]["uri"]).rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    before = project.made()
    assert project.run()["dataset"]["digest"] == first["dataset"]["digest"]
    assert project.made() == before


def test_a_file_added_to_the_source_is_a_new_dataset_and_new_training(project: Project, first: dict) -> None:
    before = project.made()
    new = next(project.images.rglob("class00")) / "new.png"
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(new)
    try:
        again = project.run()
    finally:
        new.unlink()
    assert again["dataset"]["digest"] != first["dataset"]["digest"]
    assert again["dataset"]["examples"] == first["dataset"]["examples"] + 1
    assert len([name for name in project.made() - before if name.startswith("training/")]) == 2


def test_an_edited_core_trains_again(project: Project, first: dict, tmp_path: Path, command: Command) -> None:
    """The package is copied, a comment is added to the copy, and the run is repeated with the copy."""
    root = Path(__file__).parent.parent.parent
    for name in ("metalearn_core", "components", "pipelines"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "metalearn_core" / "learners" / "contract.py").open("a") as file:
        file.write("# edited\n")
    before = project.made()
    arguments = ["run", project.images, "--workdir", project.workdir, *SMALL, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len([name for name in project.made() - before if name.startswith("training/")]) == 2
    assert json.loads(done.stdout)["dataset"]["digest"] == first["dataset"]["digest"]


def test_the_registered_model_is_used_by_the_other_verbs(
    project: Project, first: dict, metalearn: Run, tmp_path: Path
) -> None:
    here = ("--workdir", project.workdir)
    listed = metalearn("models", *here, "--json").json["models"]
    assert any("candidate" in entry["aliases"] for entry in listed)
    runs = metalearn("runs", *here, "--json").json["runs"]
    assert any(entry["run_id"] == first["run_id"] for entry in runs)
    evaluated = metalearn(
        "evaluate", "few-shot@candidate", first["dataset"]["uri"], "--episodes", 20, *here, "--json"
    ).json
    assert evaluated["way"] == 3
    assert set(evaluated["by_domain"])
    support = tmp_path / "support"
    for folder in sorted(project.images.glob("domain0/*"))[:3]:
        shutil.copytree(folder, support / folder.name)
    predicted = metalearn("predict", "few-shot@candidate", "--support", support, "--query", support, *here, "--json")
    for entry in predicted.json["predictions"]:
        assert sum(entry["probabilities"].values()) == pytest.approx(1)
        assert set(entry["probabilities"]) == {folder.name for folder in support.iterdir()}
    compared = metalearn(
        "compare", *(result["bundle"] for result in first["results"]), first["dataset"]["uri"], *here, "--json"
    ).json
    assert compared["low"] <= compared["difference"] <= compared["high"]
