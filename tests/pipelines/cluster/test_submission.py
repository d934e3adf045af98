"""`metalearn submit` against a server that holds every request against KFP's OpenAPI document."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from metalearn_core.version import git_commit, package_version
from pipelines.cluster.package import digest_in
from tests.pipelines.cluster.conftest import STORAGE, TRACKING
from tests.pipelines.cluster.kfp_server import Cluster, Handler, KfpServer, drop, refuse
from tests.pipelines.conftest import Answer

Submit = Callable[..., Answer]
Refused = Callable[..., str]


def only(entries: dict) -> dict:
    (entry,) = entries.values()
    return entry


def test_the_first_submission_makes_pipeline_version_experiment_and_run(
    submit: Submit, cluster: Cluster, server: KfpServer
) -> None:
    answer = submit("--json")
    assert answer.status == 0, answer.errors
    assert cluster.asked() == [
        "GET /healthz",
        "GET /pipelines",
        "POST /pipelines",
        f"GET /pipelines/{next(iter(cluster.pipelines))}/versions",
        "POST /pipelines/upload_version",
        "GET /experiments",
        "POST /experiments",
        "POST /runs",
    ]
    run, version = only(cluster.runs), only(cluster.versions)
    assert answer.json == {
        "run_id": run["run_id"],
        "state": "PENDING",
        "page": f"{server.host}/#/runs/details/{run['run_id']}",
        "mlflow_page": TRACKING,
        "pipeline": {
            "pipeline_id": version["pipeline_id"],
            "version_id": version["pipeline_version_id"],
            "name": version["name"],
            "uploaded": True,
        },
        "experiment": {"id": only(cluster.experiments)["experiment_id"], "name": "few-shot"},
        "namespace": None,
        "name": "glyphs 5-way 1-shot: protonet + maml + transfer",
    }
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]


def test_the_version_is_named_by_version_and_commit(submit: Submit, cluster: Cluster) -> None:
    submit()
    version = only(cluster.versions)
    assert version["name"] == f"{package_version()}-{git_commit()}"
    assert digest_in(version["description"]) is not None


def test_what_is_uploaded_is_the_pipeline_with_the_tracking_server(submit: Submit, cluster: Cluster) -> None:
    submit("--build-shards", 3)
    spec, platform = yaml.safe_load_all(cluster.packages[0])
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    parsed = json_format.MessageToDict(json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()))
    executors = parsed["deploymentSpec"]["executors"]
    for executor in executors.values():
        values = {entry["name"]: entry["value"] for entry in executor["container"]["env"]}
        own = {"METALEARN_IN_IMAGE": "registry.example/metalearn:1", "METALEARN_EVENTS": "-"}
        assert values == {"MLFLOW_TRACKING_URI": TRACKING, **own}
    assert any("decode" in name for name in executors)


def test_where_it_trains_goes_with_the_run_and_what_every_step_gets_with_the_version(
    submit: Submit, cluster: Cluster, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("cluster: {train: {memory: 64Gi}, small: {timeout: 20m}, service_account: metalearn-pipeline}")
    chosen = ("--gpus", 2, "--node-selector", "pool=gpu", "--toleration", "spot:NoSchedule")
    assert submit("--config", config, *chosen, "--secret-env", "HF_TOKEN=hub/token").status == 0
    assert submit("--config", config, "--gpus", 4, "--secret-env", "HF_TOKEN=hub/token").status == 0
    version = only(cluster.versions)  # another pod is no other pipeline
    run = next(iter(cluster.runs.values()))
    parameters = run["runtime_config"]["parameters"]
    assert (parameters["train_gpus"], parameters["train_memory"]) == ("2", "64Gi")
    assert parameters["train_node_selector"] == {"pool": "gpu"}
    assert parameters["train_tolerations"] == [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    assert parameters["kfp_pipeline_id"] == version["pipeline_id"]
    assert parameters["kfp_pipeline_version_id"] == version["pipeline_version_id"]
    assert run["service_account"] == "metalearn-pipeline"
    _, platform = yaml.safe_load_all(cluster.packages[0])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-register"]["activeDeadlineSeconds"] == "1200"
    assert "hub" in [entry["secretName"] for entry in executors["exec-register"]["secretAsEnv"]]


def test_a_pod_that_cannot_be_is_refused_before_anything_is_asked(
    submit: Submit, refused: Refused, cluster: Cluster
) -> None:
    refused(submit("--gpus", 17), 2, "train.gpus: expected 0 to 16")
    refused(submit("--toleration", "gpu=yes:Never"), 2, "--toleration: expected key=value:effect")
    assert cluster.asked() == []


def test_parameters_have_their_types_and_places_their_addresses(submit: Submit, cluster: Cluster) -> None:
    answer = submit(
        *("s3://bucket/photos", "--learner", "maml", "--set", "maml.inner_steps=3", "--way", 7, "--train-episodes", 50),
        *("--ratios", "0.6,0.2,0.2", "--set", "gate.min_accuracy=0.4", "--experiment", "parts"),
        *("--split-file", "s3://bucket/splits.csv", "--storage", "s3://bucket/metalearn/"),
    )
    assert answer.status == 0, answer.errors
    run = only(cluster.runs)
    parameters = run["runtime_config"]["parameters"]
    assert parameters["source"] == "s3://bucket/photos"
    assert parameters["split_file"] == "s3://bucket/splits.csv"
    assert parameters["storage"] == STORAGE
    assert (parameters["way"], parameters["train_episodes"], parameters["train_seconds"]) == ("7", 50, 0.0)
    assert parameters["ratios"] == [0.6, 0.2, 0.2]
    assert parameters["gate"] == {"min_accuracy": 0.4}
    assert [json.loads(item)["options"] for item in parameters["learners"]] == [{"inner_steps": 3}]
    assert parameters["command"].startswith("metalearn submit s3://bucket/photos --learner maml")
    assert only(cluster.experiments)["display_name"] == "parts"
    assert run["experiment_id"] in cluster.experiments


def test_options_of_the_run_reach_it(submit: Submit, cluster: Cluster) -> None:
    submit("--service-account", "trainer", "--pipeline-root", "s3://bucket/kfp")
    run = only(cluster.runs)
    assert run["service_account"] == "trainer"
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/kfp"


def test_a_version_that_is_there_is_used_again(submit: Submit, cluster: Cluster) -> None:
    first, second = submit("--json"), submit("--json", "--way", 9)
    assert (first.status, second.status) == (0, 0)
    assert len(cluster.packages) == len(cluster.versions) == len(cluster.pipelines) == len(cluster.experiments) == 1
    assert len(cluster.runs) == 2
    assert second.json["pipeline"] == {**first.json["pipeline"], "uploaded": False}


def test_a_version_is_known_by_its_content_where_its_description_says_nothing(submit: Submit, cluster: Cluster) -> None:
    submit()
    only(cluster.versions)["description"] = "by hand"
    assert submit().status == 0
    assert len(cluster.packages) == 1
    spec = only(cluster.versions)["pipeline_spec"]["pipeline_spec"]
    spec["pipelineInfo"]["description"] = "another"
    assert "other content" in submit().errors
    assert len(cluster.packages) == 2


def test_another_content_of_the_same_version_is_said_and_gets_a_name_of_its_own(
    submit: Submit, cluster: Cluster
) -> None:
    submit()
    answer = submit("--build-shards", 2, "--json")
    assert answer.status == 0
    first, second = cluster.versions.values()
    assert f"version {first['name']} of pipeline few-shot is there with other content" in answer.errors
    assert second["name"].startswith(f"{first['name']}-")
    assert answer.json["pipeline"]["name"] == second["name"]
    assert submit("--build-shards", 2).status == 0
    assert len(cluster.packages) == 2


def test_two_first_submissions_at_once_share_pipeline_and_version(submit: Submit, cluster: Cluster) -> None:
    submit()
    made, versions = dict(cluster.pipelines), dict(cluster.versions)

    def faster(handler: Handler) -> None:
        """Another submission makes the pipeline and its version after this one has looked for them."""
        cluster.pipelines.update(made)
        handler.send(409, {"code": 6, "message": "exists already", "details": []})

    def faster_version(handler: Handler) -> None:
        cluster.versions.update(versions)
        handler.send(409, {"code": 6, "message": "exists already", "details": []})

    cluster.pipelines.clear()
    cluster.versions.clear()
    cluster.fault("POST", "/pipelines", faster)
    cluster.fault("POST", "/upload_version", faster_version)
    answer = submit("--json")
    assert answer.status == 0, answer.errors
    assert answer.json["pipeline"]["uploaded"] is False
    assert (cluster.pipelines, cluster.versions) == (made, versions)


def test_an_experiment_that_another_submission_has_just_made_is_used(submit: Submit, cluster: Cluster) -> None:
    submit()
    made = dict(cluster.experiments)

    def faster(handler: Handler) -> None:
        cluster.experiments.update(made)
        handler.send(409, {"code": 6, "message": "exists already", "details": []})

    cluster.experiments.clear()
    cluster.fault("POST", "/experiments", faster)
    assert submit().status == 0
    assert cluster.experiments == made


def test_the_answer_has_links_to_both_pages(submit: Submit, cluster: Cluster) -> None:
    answer = submit("--ui-host", "https://kubeflow.example.com/_/pipeline/")
    (run_id,) = cluster.runs
    assert f"https://kubeflow.example.com/_/pipeline/#/runs/details/{run_id}" in answer.output
    assert TRACKING in answer.output
    assert answer.errors == ""


def test_a_namespace_goes_with_what_is_made(submit: Submit, cluster: Cluster) -> None:
    cluster.namespaces = {"team-a"}
    answer = submit("--namespace", "team-a", "--json")
    assert answer.status == 0, answer.errors
    assert only(cluster.pipelines)["namespace"] == only(cluster.experiments)["namespace"] == "team-a"
    assert answer.json["namespace"] == "team-a"


def test_where_there_are_many_users_a_namespace_is_wanted_before_anything_is_uploaded(
    submit: Submit, cluster: Cluster, refused: Refused
) -> None:
    cluster.namespaces = {"team-a"}
    refused(submit(), 2, "--namespace")
    assert cluster.asked() == ["GET /healthz"]


def test_an_archived_experiment_is_named(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    submit()
    only(cluster.experiments)["storage_state"] = "ARCHIVED"
    refused(submit(), 1, "'few-shot'", "archive")
    assert len(cluster.runs) == 1


def test_a_lost_answer_to_the_start_of_a_run_is_told_as_a_doubt(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused
) -> None:
    cluster.fault("POST", "/runs", drop)
    refused(submit(), 1, "dropped the connection", "may have been started", f"{server.host}/#/runs")


def test_a_run_that_the_cluster_refuses_is_told_in_its_words(
    submit: Submit, cluster: Cluster, refused: Refused
) -> None:
    cluster.fault("POST", "/runs", refuse(400, "the quota of\nthe namespace is used up"))
    refused(submit(), 1, "400", "the quota of the namespace is used up")


def test_a_signal_while_a_run_is_started_is_told_as_a_doubt(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused
) -> None:
    def interrupt(handler: Handler) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        handler.close_connection = True

    cluster.fault("POST", "/runs", interrupt)
    refused(submit(), 130, "interrupted", "may have been started", f"{server.host}/#/runs")


def test_host_and_tracking_server_can_be_told_by_the_environment(
    submit: Submit, cluster: Cluster, server: KfpServer
) -> None:
    variables = {"KF_PIPELINES_ENDPOINT": server.host, "MLFLOW_TRACKING_URI": TRACKING, "METALEARN_STORAGE": STORAGE}
    assert submit(host=None, storage=None, tracking_uri=None, **variables).status == 0
    assert len(cluster.runs) == 1


# -- schedules


def test_a_schedule_makes_a_recurring_run_and_no_run(submit: Submit, cluster: Cluster, server: KfpServer) -> None:
    answer = submit("--schedule", "0 30 3 * * mon-fri", "--json")
    assert answer.status == 0, answer.errors
    recurring = only(cluster.recurring_runs)
    assert recurring["trigger"] == {"cron_schedule": {"cron": "0 30 3 * * mon-fri"}}
    assert (recurring["max_concurrency"], recurring["no_catchup"], recurring["mode"]) == ("1", True, "ENABLE")
    assert recurring["pipeline_version_reference"]["pipeline_version_id"] in cluster.versions
    assert not cluster.runs
    assert answer.json["recurring_run_id"] == recurring["recurring_run_id"]
    assert answer.json["schedule"] == {"cron": "0 30 3 * * mon-fri", "max_concurrency": 1, "catchup": False}
    assert answer.json["page"] == f"{server.host}/#/recurringrun/details/{recurring['recurring_run_id']}"


def test_concurrency_and_catching_up_can_be_chosen(submit: Submit, cluster: Cluster) -> None:
    submit("--schedule", "0 0 * * * *", "--max-concurrency", 4, "--catchup")
    recurring = only(cluster.recurring_runs)
    assert (recurring["max_concurrency"], recurring["no_catchup"]) == ("4", False)


def test_a_schedule_of_the_same_name_that_goes_on_is_told(submit: Submit, cluster: Cluster, server: KfpServer) -> None:
    assert submit("--schedule", "0 0 3 * * *").errors == ""
    first = only(cluster.recurring_runs)
    answer = submit("--schedule", "0 0 4 * * *")
    assert answer.status == 0
    assert f"beside this one: {server.host}/#/recurringrun/details/{first['recurring_run_id']}" in answer.errors
    for entry in cluster.recurring_runs.values():
        entry["status"] = "DISABLED"
    assert submit("--schedule", "0 0 5 * * *").errors == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schedule", "0 3 * * *"], ["six fields", "got 5"]),
        (["--schedule", "@daily"], ["six fields"]),
        (["--schedule", "0 61 * * * *"], ["minute", "61"]),
        (["--schedule", "0 0 3 * * *", "--wait"], ["--wait", "--schedule"]),
        (["--schedule", "0 0 3 * * *", "--max-concurrency", 11], ["--max-concurrency", "10"]),
        (["--max-concurrency", 2], ["--schedule"]),
        (["--catchup"], ["--schedule"]),
    ],
)
def test_a_wrong_schedule_is_refused_before_anything_is_asked(
    submit: Submit, cluster: Cluster, refused: Refused, options: list, words: list[str]
) -> None:
    refused(submit(*options), 2, *words)
    assert cluster.asked() == []


# -- what a pod does not reach


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["photos"], ["'photos'", "glyphs", "s3://"]),
        (["--split-file", "splits.csv"], ["--split-file", "splits.csv", "s3://"]),
        (["--split-from", "/data/manifest.json"], ["--split-from", "s3://"]),
        (["--storage", "/data"], ["--storage", "s3://bucket", "/data"]),
        (["--storage", "s3://b/m"], ["--storage", "a bucket's name has 3 to 63 characters, got 'b'"]),
        (["--secret-env", "MLFLOW_TRACKING_URI=mlflow/uri"], ["--secret-env MLFLOW_TRACKING_URI", "--tracking-uri"]),
        (["--config-map-env", "MLFLOW_TRACKING_URI=m/u"], ["--config-map-env MLFLOW_TRACKING_URI", "--tracking-uri"]),
        (["--storage", "s3://"], ["--storage", "s3://bucket"]),
        (["--storage", "gs://bucket/x"], ["--storage", "gs://bucket/x"]),
        (["--tracking-uri", "sqlite:////tmp/mlflow.db"], ["--tracking-uri", "sqlite", "pods"]),
        (["--tracking-uri", "http://localhost:5000"], ["--tracking-uri", "localhost", "pod"]),
        (["--tracking-uri", "http://127.0.0.2:5000"], ["--tracking-uri", "127.0.0.2", "pod"]),
        (["--tracking-uri", "http://[::1]:5000"], ["--tracking-uri", "pod"]),
        (["--tracking-uri", ""], ["--tracking-uri", "MLFLOW_TRACKING_URI"]),
        (["--way", 1], ["way", "1"]),
        (["--learner", "mamll"], ["mamll", "maml"]),
        (["--rotations", "some"], ["rotations", "some"]),
        (["--image-size", 50_000], ["image_size", "50000"]),
        (["--set", "gate.min_accuracy=7"], ["min_accuracy", "7"]),
        (["--model-name", "team/parts"], ["model name", "team/parts"]),
    ],
)
def test_wrong_use_is_told_before_anything_is_asked(
    submit: Submit, cluster: Cluster, refused: Refused, options: list, words: list[str]
) -> None:
    answer = submit(*options)
    refused(answer, 2, *words)
    assert answer.output == ""
    assert cluster.asked() == []


def test_a_source_in_a_file_of_options_is_checked_too(
    submit: Submit, refused: Refused, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "run.yaml").write_text("source: photos\n")
    refused(submit("--config", tmp_path / "run.yaml"), 2, "'photos'")
    assert cluster.asked() == []


def test_without_an_image_it_says_which_one_the_nodes_must_have(submit: Submit) -> None:
    answer = submit(METALEARN_IMAGE="")
    assert answer.status == 0
    assert "the steps run in metalearn-python:" in answer.errors


def test_a_processor_does_not_hold_gpus(submit: Submit, cluster: Cluster, refused: Callable[..., str]) -> None:
    refused(submit("--gpus", 1, "--device", "cpu"), 2, "--gpus 1 and --device cpu: take one of the two")
    assert cluster.asked() == []


def test_parts_of_a_build_want_a_colour_before_anything_is_uploaded(
    submit: Submit, cluster: Cluster, refused: Callable[..., str]
) -> None:
    refused(
        submit("s3://data/photos", "--build-shards", 4), 2, "build_shards: a part of a build does not see every image"
    )
    assert not cluster.runs
