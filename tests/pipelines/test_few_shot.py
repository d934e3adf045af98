"""The compiled pipeline, parsed back into KFP's own protobufs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from metalearn_core.steps.frame import PIPELINE_RUN_VARIABLE
from metalearn_core.version import version_name
from pipelines.cluster.placement import Placement
from pipelines.config import RunConfig, pipeline_arguments
from pipelines.few_shot import compile_pipeline, few_shot_pipeline

STEPS = {
    "open-run",
    "build-episodes",
    "validate-episodes",
    "select-learner",
    "register",
    "promote",
    "close-run",
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("compiled") / "few_shot.yaml"
    compile_pipeline(str(path))
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def spec(documents: list[dict]) -> pipeline_spec_pb2.PipelineSpec:
    return json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())


def test_platform_part_parses_into_its_protobuf(documents: list[dict]) -> None:
    json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())


def test_the_steps_are_those_of_the_design(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    tasks = set(spec.root.dag.tasks)
    assert tasks >= STEPS
    [loop] = tasks - STEPS
    assert set(spec.components[spec.root.dag.tasks[loop].component_ref.name].dag.tasks) == {"meta-train", "evaluate"}


def test_a_build_that_is_shared_out_is_a_loop_before_the_build() -> None:
    compiled = few_shot_pipeline(build_shards=3).pipeline_spec
    tasks = compiled.root.dag.tasks
    [name] = [name for name, task in tasks.items() if "1/3" in task.parameter_iterator.items.raw]
    loop = tasks[name]
    assert json.loads(loop.parameter_iterator.items.raw) == ["1/3", "2/3", "3/3"]
    assert set(compiled.components[loop.component_ref.name].dag.tasks) == {"decode-part"}
    assert name in tasks["build-episodes"].dependent_tasks


def test_every_pipeline_input_has_a_default_and_a_description(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    inputs = spec.root.input_definitions.parameters
    assert len(inputs) > 20
    for name, parameter in inputs.items():
        assert parameter.is_optional, f"{name} has no default"
        assert parameter.description, f"{name} has no description"


def test_no_step_is_cached_by_kfp_whose_key_does_not_know_the_core(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    dags = [spec.root.dag, *(component.dag for component in spec.components.values() if component.dag.tasks)]
    for dag in dags:
        for name, task in dag.tasks.items():
            if spec.components[task.component_ref.name].executor_label:
                assert not task.caching_options.enable_cache, name


def test_each_step_learns_its_run_from_its_pod_and_not_from_a_parameter(documents: list[dict]) -> None:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == len(STEPS) + 2
    for executor in executors.values():
        assert {"name": PIPELINE_RUN_VARIABLE, "fieldPath": "metadata.labels['pipeline/runid']"} in executor[
            "fieldPathAsEnv"
        ]
    assert not any("run_id" in name for name in documents[0]["root"]["inputDefinitions"]["parameters"])


def test_the_command_line_and_the_pipeline_have_the_same_inputs(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    arguments = pipeline_arguments(RunConfig(), ["{}"], Path("/storage"), "metalearn run")
    of_the_cluster = {*Placement().arguments(), "kfp_pipeline_id", "kfp_pipeline_version_id"}
    assert set(arguments) == set(spec.root.input_definitions.parameters) - of_the_cluster


def test_an_image_can_be_chosen_for_all_steps() -> None:
    compiled = few_shot_pipeline(image="registry.example/metalearn@sha256:0").pipeline_spec
    executors = json_format.MessageToDict(compiled)["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {"registry.example/metalearn@sha256:0"}


def test_kubernetes_manifest_is_a_pipeline_and_its_version(tmp_path: Path) -> None:
    compile_pipeline(str(tmp_path / "manifest.yaml"), kubernetes_manifest=True)
    documents = list(yaml.safe_load_all((tmp_path / "manifest.yaml").read_text()))
    assert {document["apiVersion"] for document in documents} == {"pipelines.kubeflow.org/v2beta1"}
    of_kind = {document["kind"]: document for document in documents}
    assert set(of_kind) == {"Pipeline", "PipelineVersion"}
    assert len(documents) == 2
    pipeline, version = of_kind["Pipeline"], of_kind["PipelineVersion"]
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    json_format.ParseDict(version["spec"]["pipelineSpec"], pipeline_spec_pb2.PipelineSpec())


def test_of_one_commit_each_other_content_is_a_version_of_its_own(tmp_path: Path) -> None:
    def version(**settings: Any) -> str:
        compile_pipeline(str(tmp_path / "manifest.yaml"), kubernetes_manifest=True, **settings)
        documents = yaml.safe_load_all((tmp_path / "manifest.yaml").read_text())
        return next(one["metadata"]["name"] for one in documents if one["kind"] == "PipelineVersion")

    usual = version()
    assert version() == usual
    others = [version(image="registry.example/metalearn:1"), version(placement=Placement(nodes=2))]
    assert len({usual, *others}) == 3
    assert usual.startswith(f"few-shot-{version_name()}-")
