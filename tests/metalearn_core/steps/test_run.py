"""The first step: what a pipeline run's MLflow run knows of its inputs."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from metalearn_core.errors import UsageError
from metalearn_core.steps.run import open_run

SETTINGS = {
    "source": "glyphs",
    "way": "5",
    "shot": "1",
    "query": 15,
    "train_way": "0",
    "train_shot": "0",
    "train_query": 0,
    "train_episodes": 10,
    "train_seconds": 0,
    "seed": 0,
    "patience": 0,
    "precision": "fp32",
    "eval_episodes": 100,
    "eval_seed": 0,
    "gate": {},
    "model_name": "parts",
}
POD = {
    "train_cpu": "4",
    "train_memory": "16Gi",
    "train_gpus": "0",
    "train_gpu_type": "nvidia.com/gpu",
    "train_node_selector": {},
    "train_tolerations": [],
}


def parameters(client: MlflowClient, run_id: str) -> set[str]:
    return {name.removeprefix("cfg/") for name in client.get_run(run_id).data.params}


def test_the_inputs_are_the_runs_parameters(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "one")
    items = [json.dumps({"learner": "protonet"})]
    run_id = open_run("few-shot", items, storage=str(tmp_path), device="cpu", processes=2, pod=POD, **SETTINGS)
    logged = client.get_run(run_id).data.params
    assert (logged["cfg/storage"], logged["cfg/device"], logged["cfg/processes"]) == (str(tmp_path), "cpu", "2")
    assert parameters(client, run_id) >= {*SETTINGS} - {"gate"}
    assert not parameters(client, run_id) & {*POD}, "a run on this machine has no pod"


def test_a_learner_that_cannot_take_the_episodes_is_refused_before_there_is_any_data(tmp_path: Path) -> None:
    items = [json.dumps({"learner": "protonet"}), json.dumps({"learner": "snail"})]
    with pytest.raises(UsageError, match=r"snail is built for one shot, .* set snail\.shot=5"):
        open_run("few-shot", items, storage=str(tmp_path), **{**SETTINGS, "shot": "5"})
