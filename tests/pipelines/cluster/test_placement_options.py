"""What a person may say of the steps on a cluster, by options and in a file; what is wrong is refused at once."""

import json
import re
from collections.abc import Callable

import pytest
import yaml

from components.image import IMAGE
from metalearn_core.errors import UsageError
from pipelines.cluster.placement import Placement, read_placement
from pipelines.few_shot import few_shot_pipeline

MARKER = "marker-of-a-secret-4711"


BAD_OPTIONS = {
    "more GPUs than any node has": (["--gpus", "17"], "train.gpus: expected 0 to 16, .*got 17"),
    "GPUs below none": (["--gpus", "-1"], "train.gpus: expected 0 to 16, .*got -1"),
    "an effect that is none": (["--toleration", "gpu=yes:Never"], "--toleration: .*NoSchedule.*'gpu=yes:Never'"),
    "a toleration without a key": (["--toleration", ":NoSchedule"], "--toleration: expected key=value:effect"),
    "a toleration without a value": (["--toleration", "gpu=:NoSchedule"], "--toleration: expected key=value:effect"),
    "a toleration with a space": (["--toleration", "my gpu:NoSchedule"], "--toleration: expected a taint's key"),
    "a selector that is no pair": (["--node-selector", "gpu"], "--node-selector: expected pool=gpu, got 'gpu'"),
    "a label that is none": (["--node-selector", "pool=a b"], "node_selector: expected a node's label"),
    "a time without a unit": (["--train-timeout", "soon"], "train.timeout: expected a time as 90s.*'soon'"),
    "retries below none": (["--train-retries", "-1"], "train.retries: .*-1"),
    "memory without a unit": (["--train-memory", "16"], "train.memory: expected a size as 16Gi.*'16'"),
    "less memory than shared memory": (["--train-memory", "1Gi"], "train: shm 2Gi is more than"),
    "cores that are none": (["--train-cpu", "lots"], "train.cpu: expected cores as 4.*'lots'"),
    "a GPU that has no domain": (["--gpu-type", "A100"], "train.gpu_type: expected a resource's name.*'A100'"),
    "no nodes": (["--nodes", "0"], "nodes: .*greater than or equal to 1, got 0"),
    "less than none at a time": (["--parallelism", "-1"], "parallelism: .*greater than or equal to 0, got -1"),
    "a work directory": (["--workdir", "work"], "No such option: --workdir"),
    "a secret that is no pair": (["--secret-env", "TOKEN"], "--secret-env: expected NAME=name/key"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_wrong_option_is_one_line_before_anything_is_written(metalearn: Callable, tmp_path, name) -> None:
    options, line = BAD_OPTIONS[name]
    answer = metalearn("compile", "-o", tmp_path / "p.yaml", *options)
    assert answer.status == 2
    assert len(answer.errors.strip().splitlines()) == 1
    assert re.search(line, answer.errors), answer.errors
    assert list(tmp_path.iterdir()) == []


BAD_SECTIONS = {
    "no names": ([1], "option cluster: expected names"),
    "an unknown name": ({"gpus": 2}, "unknown option 'cluster.gpus'"),
    "an unknown name below": ({"train": {"gpu": 2}}, "'cluster.train.gpu': did you mean 'cluster.train.gpus'"),
    "more GPUs than its own nodes": ({"node_gpus": 8, "train": {"gpus": 16}}, "largest node has node_gpus 8"),
    "a request over its limit": ({"build": {"cpu": 16}}, "cluster.build: cpu 16 is more than cpu_limit 4"),
    "a malformed toleration": ({"small": {"tolerations": ["x:y:z"]}}, "small.tolerations.0: expected key=value"),
    "a toleration in Kubernetes' words": (
        {"train": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "train.tolerations.0: operator Exists takes no value",
    ),
    "a policy that is none": ({"image_pull_policy": "often"}, "image_pull_policy"),
    "a variable twice": (
        {"secret_env": {"A": "s/k"}, "config_map_env": {"A": "c/k"}},
        "A comes from a secret and from a config map",
    ),
    "a variable with a space": ({"secret_env": {"A B": "s/k"}}, "secret_env: expected the name of a variable"),
}


@pytest.mark.parametrize("name", BAD_SECTIONS)
def test_a_wrong_section_of_a_file_is_one_line(name) -> None:
    section, line = BAD_SECTIONS[name]
    with pytest.raises(UsageError, match=re.escape(line)) as caught:
        read_placement(section, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [MARKER, f"AWS_SECRET_ACCESS_KEY={MARKER}", f"AWS_SECRET_ACCESS_KEY={MARKER}//"])
def test_a_secret_given_in_place_of_its_name_is_not_repeated(text) -> None:
    with pytest.raises(UsageError) as caught:
        read_placement(None, {}, secret_env=[text])
    assert MARKER not in str(caught.value)


def test_a_file_and_options_say_the_same_and_options_win(metalearn: Callable, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"way": 5, "cluster": {"train": {"gpus": 1, "memory": "32Gi"}}}))
    answer = metalearn("compile", "-o", tmp_path / "p.yaml", "--config", config, "--gpus", "2", "--json")
    assert answer.status == 0, answer.errors
    text = (tmp_path / "p.yaml").read_text()
    assert re.search(r"defaultValue: '2'\n\s+description: GPUs of each training pod", text)
    assert re.search(r"defaultValue: 32Gi\n\s+description: memory of each training pod", text)


def test_a_storage_that_is_compiled_in_is_the_default_of_the_runs(metalearn: Callable, tmp_path) -> None:
    answer = metalearn("compile", "-o", tmp_path / "p.yaml", "--storage", "s3://data/metalearn/")
    assert answer.status == 0, answer.errors
    pipeline, _ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    assert pipeline["root"]["inputDefinitions"]["parameters"]["storage"]["defaultValue"] == "s3://data/metalearn"
    answer = metalearn("compile", "-o", tmp_path / "other.yaml", METALEARN_STORAGE="/data")
    assert answer.status == 2
    assert answer.errors.startswith("error: --storage: '/data' is no place that the cluster's pods see")
    assert not (tmp_path / "other.yaml").exists()


def test_a_service_account_that_a_pipeline_has_no_place_for_is_said(metalearn: Callable, tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("cluster: {service_account: trainer}\n")
    image = ("--image", "registry.example/metalearn:1")
    answer = metalearn("compile", "-o", tmp_path / "p.yaml", "--config", config, *image, "--json")
    assert (answer.status, answer.json) == (0, {"file": str(tmp_path / "p.yaml")})
    assert answer.errors == "service account trainer: a pipeline has no place for it, so give it with each run\n"


def test_an_image_that_is_of_this_machine_is_said_and_a_parallelism_is_an_option(metalearn: Callable, tmp_path) -> None:
    answer = metalearn("compile", "-o", tmp_path / "p.yaml", "--parallelism", 2)
    assert answer.status == 0, answer.errors
    assert answer.errors == f"the steps run in {IMAGE}, which the nodes must have; --image names one in a registry\n"
    assert "parallelismLimit: 2" in (tmp_path / "p.yaml").read_text()


def test_a_run_here_takes_no_notice_of_a_files_cluster_section(tmp_path) -> None:
    from pipelines.config import RunConfig, read_config

    config = tmp_path / "run.yaml"
    config.write_text("way: 7\ncluster: {nodes: 2}\n")
    assert read_config(config, {}, [], []) == RunConfig(way=7, train_seconds=25.0, cluster={"nodes": 2})


def test_a_tracking_address_with_a_password_is_refused_as_everybody_can_read_the_pipeline() -> None:
    with pytest.raises(UsageError, match=r"tracking URI https://mlflow\.example: .*secret") as caught:
        few_shot_pipeline(tracking_uri=f"https://me:{MARKER}@mlflow.example", placement=Placement())
    assert MARKER not in str(caught.value)
