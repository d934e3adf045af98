"""What the steps get on a cluster: every step of the compiled pipeline."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2

from components.image import IMAGE
from pipelines.cluster.placement import CONFIG_MAPS, IMAGE_USER, SECRETS, Placement, read_placement
from pipelines.few_shot import compile_pipeline, few_shot_pipeline

KINDS = {
    "open-run": "small",
    "select-learner": "small",
    "register": "small",
    "decode-part": "build",
    "build-episodes": "build",
    "validate-episodes": "build",
    "evaluate": "evaluate",
    "promote": "evaluate",
    "close-run": "evaluate",
    "meta-train": "train",
}


MARKER = "marker-of-a-secret-4711"


INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.*)'\]\}\}")


@dataclass(frozen=True)
class Step:
    """One step of the compiled pipeline: its task, its container, and what the platform adds."""

    task: pipeline_spec_pb2.PipelineTaskSpec
    container: pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec
    platform: KubernetesExecutorConfig
    dag: pipeline_spec_pb2.ComponentSpec


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline."""

    text: str
    spec: pipeline_spec_pb2.PipelineSpec
    steps: dict[str, Step]

    @property
    def defaults(self) -> dict:
        inputs = self.spec.root.input_definitions.parameters
        return {name: json_format.MessageToDict(value.default_value) for name, value in inputs.items()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Compiled]:
    def compile_for(placement: Placement | None = None, build_shards: int = 2) -> Compiled:
        path: Path = tmp_path_factory.mktemp("compiled") / "few_shot.yaml"
        compile_pipeline(str(path), build_shards=build_shards, placement=placement)
        pipeline, platform = yaml.safe_load_all(path.read_text())
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        executors = json_format.ParseDict(
            pipeline["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
        ).executors
        settings = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()).platforms["kubernetes"]
        steps = {}
        for parent in (spec.root, *spec.components.values()):
            for name, task in parent.dag.tasks.items():
                label = spec.components[task.component_ref.name].executor_label
                if label:
                    config = json_format.MessageToDict(settings.deployment_spec.executors[label])
                    platform_part = json_format.ParseDict(config, KubernetesExecutorConfig())
                    steps[name] = Step(task, executors[label].container, platform_part, parent)
        return Compiled(path.read_text(), spec, steps)

    return compile_for


@pytest.fixture(scope="module")
def standard(compiled):
    return compiled()


@pytest.fixture(scope="module")
def chosen(compiled):
    placement = read_placement(
        {
            "build": {
                "tolerations": ["batch:NoSchedule"],
                "node_selector": {"disk": "nvme"},
                "shm": "3Gi",
                "retries": 5,
            },
            "small": {"timeout": "10m"},
            "train": {"scratch": "50Gi", "cpu": 8, "memory": "64Gi"},
            "image_pull_policy": "Always",
            "image_pull_secrets": ["registry"],
        },
        {"train.gpus": 4, "train.timeout": "3h", "train.retries": 7},
        tolerations=["nvidia.com/gpu=present:NoSchedule", "spot:NoExecute"],
        node_selector=["pool=gpu"],
        secret_env=["HF_TOKEN=hub/token", "AWS_ACCESS_KEY_ID=own/id"],
        config_map_env=["REGION=site/region"],
    )
    return compiled(placement)


def test_every_step_of_the_pipeline_has_a_kind(standard) -> None:
    assert set(standard.steps) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_kfps_cache_is_off_so_that_no_step_registers_or_promotes_what_an_earlier_run_made(standard, name) -> None:
    assert standard.steps[name].task.HasField("caching_options")
    assert not standard.steps[name].task.caching_options.enable_cache


@pytest.mark.parametrize("name", KINDS)
def test_every_step_asks_for_its_resources(standard, name) -> None:
    step, wanted = standard.steps[name], getattr(Placement(), KINDS[name])
    resources = step.container.resources
    found = (
        resources.resource_cpu_request,
        resources.resource_cpu_limit,
        resources.resource_memory_request,
        resources.resource_memory_limit,
    )
    if KINDS[name] == "train":
        inputs = [INPUT.fullmatch(value)[1] for value in found]
        assert inputs == [f"pipelinechannel--train_{what}" for what in ("cpu", "cpu", "memory", "memory")]
    else:
        assert found == (wanted.cpu, wanted.cpu_limit, wanted.memory, wanted.memory_limit)
        assert not resources.HasField("accelerator")


@pytest.mark.parametrize("name", KINDS)
def test_every_step_ends_in_time_and_is_tried_again_after_longer_and_longer_waits(chosen, name) -> None:
    step = chosen.steps[name]
    timeout, retries = {
        "small": (600, 3),
        "build": (43200, 5),
        "evaluate": (21600, 2),
        "train": (10800, 7),
    }[KINDS[name]]
    if name == "open-run":  # a wrong input stays wrong
        retries = 1
    assert step.platform.active_deadline_seconds == timeout
    policy = step.task.retry_policy
    assert policy.max_retry_count == retries
    assert (policy.backoff_duration.seconds, policy.backoff_factor) == (60, 2)
    waits = sum(60 * 2**number for number in range(retries))
    assert policy.backoff_max_duration.seconds >= (retries + 1) * timeout + waits, "Argo ends the last attempt before"


@pytest.mark.parametrize("name", KINDS)
def test_no_step_runs_as_root(standard, name) -> None:
    context = standard.steps[name].platform.security_context
    assert (context.run_as_user, context.run_as_group) == (IMAGE_USER, IMAGE_USER)
    assert context.run_as_non_root
    assert IMAGE_USER > 0


@pytest.mark.parametrize("name", KINDS)
def test_every_step_can_write_to_tmp_and_those_with_workers_have_a_dev_shm_of_their_own(chosen, name) -> None:
    mounts = {mount.mount_path: mount for mount in chosen.steps[name].platform.empty_dir_mounts}
    assert mounts["/tmp"].medium == ""
    assert mounts["/tmp"].size_limit == ("50Gi" if KINDS[name] == "train" else "")
    sizes = {"build": "3Gi", "evaluate": "1Gi", "train": "2Gi"}
    if KINDS[name] in sizes:
        assert (mounts["/dev/shm"].medium, mounts["/dev/shm"].size_limit) == ("Memory", sizes[KINDS[name]])
    else:
        assert "/dev/shm" not in mounts


@pytest.mark.parametrize("name", KINDS)
def test_every_step_has_secrets_and_settings_by_reference_alone(chosen, name) -> None:
    platform = chosen.steps[name].platform
    secrets = {
        pair.env_var: (entry.secret_name, pair.secret_key, entry.optional)
        for entry in platform.secret_as_env
        for pair in entry.key_to_env
    }
    standing = {variable: (entry.name, entry.key, True) for variable, entry in SECRETS.items()}
    own = {"HF_TOKEN": ("hub", "token", False), "AWS_ACCESS_KEY_ID": ("own", "id", False)}
    assert secrets == {**standing, **own}
    settings = {
        pair.env_var: (entry.config_map_name, pair.config_map_key, entry.optional)
        for entry in platform.config_map_as_env
        for pair in entry.key_to_env
    }
    standing = {variable: (entry.name, entry.key, True) for variable, entry in CONFIG_MAPS.items()}
    assert settings == {**standing, "REGION": ("site", "region", False)}
    values = {entry.name: entry.value for entry in chosen.steps[name].container.env}
    public = {"METALEARN_IN_IMAGE": IMAGE, "METALEARN_EVENTS": "-"}
    assert values == public, "a value in the pipeline is one that everybody can read"


def test_two_variables_may_have_one_entrys_value(compiled) -> None:
    section = {"secret_env": {"HF_TOKEN": "hub/token", "HUGGING_FACE_HUB_TOKEN": "hub/token"}}
    section |= {"config_map_env": {"REGION": "site/region", "ZONE": "site/region"}}
    platform = compiled(read_placement(section, {})).steps["register"].platform
    secrets = [pair.env_var for entry in platform.secret_as_env for pair in entry.key_to_env]
    settings = [pair.env_var for entry in platform.config_map_as_env for pair in entry.key_to_env]
    assert {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} <= set(secrets)
    assert {"REGION", "ZONE"} <= set(settings)
    assert len(set(secrets)) == len(secrets)


def test_both_loops_take_no_more_at_a_time_than_they_may(compiled, standard) -> None:
    def limits(found) -> dict[str, int]:
        tasks = found.spec.root.dag.tasks
        inside = {name: _tasks(found, task.component_ref.name) for name, task in tasks.items() if "loop" in name}
        return {next(iter(sorted(inside[name]))): tasks[name].iterator_policy.parallelism_limit for name in inside}

    assert limits(compiled(read_placement({"parallelism": 3}, {}))) == {"decode-part": 3, "evaluate": 3}
    assert limits(standard) == {"decode-part": 0, "evaluate": 0}


@pytest.mark.parametrize("name", KINDS)
def test_the_image_is_pulled_as_asked(standard, chosen, name) -> None:
    assert standard.steps[name].platform.image_pull_policy == "IfNotPresent"
    assert chosen.steps[name].platform.image_pull_policy == "Always"
    assert [entry.secret_name for entry in chosen.steps[name].platform.image_pull_secret] == ["registry"]


@pytest.mark.parametrize("name", KINDS)
def test_steps_go_to_the_nodes_of_their_kind(chosen, name) -> None:
    platform = chosen.steps[name].platform
    tolerations = [json_format.MessageToDict(entry) for entry in platform.tolerations]
    if KINDS[name] == "build":
        assert dict(platform.node_selector.labels) == {"disk": "nvme"}
        assert tolerations == [{"key": "batch", "operator": "Exists", "effect": "NoSchedule"}]
    elif KINDS[name] == "train":
        assert platform.node_selector.node_selector_json.component_input_parameter.endswith("--train_node_selector")
        [entry] = platform.tolerations
        assert entry.toleration_json.component_input_parameter.endswith("--train_tolerations")
    else:
        assert not platform.node_selector.labels
        assert tolerations == []


def test_a_run_may_choose_the_training_pod_and_the_choice_reaches_the_step_within_the_loop(chosen) -> None:
    step = chosen.steps["meta-train"]
    accelerator = step.container.resources.accelerator
    used = {
        *(INPUT.fullmatch(value)[1] for value in (accelerator.resource_count, accelerator.resource_type)),
        *(f"pipelinechannel--train_{name}" for name in ("cpu", "memory", "node_selector", "tolerations")),
    }
    loop = step.dag.input_definitions.parameters
    assert used <= set(loop), "the loop does not pass it on"
    [outer] = [
        task for task in chosen.spec.root.dag.tasks.values() if "meta-train" in _tasks(chosen, task.component_ref.name)
    ]
    for name in used:
        source = outer.inputs.parameters[name].component_input_parameter
        assert source == name.removeprefix("pipelinechannel--")
        assert source in chosen.spec.root.input_definitions.parameters


def _tasks(compiled, component: str) -> set[str]:
    return set(compiled.spec.components[component].dag.tasks)


def test_what_was_compiled_is_the_default_of_the_inputs(chosen, standard) -> None:
    assert {name: value for name, value in chosen.defaults.items() if name in Placement().arguments()} == {
        "train_cpu": "8",
        "train_memory": "64Gi",
        "train_gpus": "4",
        "train_gpu_type": "nvidia.com/gpu",
        "train_node_selector": {"pool": "gpu"},
        "train_tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Exists", "effect": "NoExecute"},
        ],
    }
    for compiled in (chosen, standard):  # the step has a process for each GPU that its run chose, not that was compiled
        assert (compiled.defaults["processes"], compiled.defaults["device"]) == (1, "auto")


@pytest.mark.parametrize("several", [False, True])
def test_the_step_that_trains_knows_how_many_gpus_its_run_chose(chosen, on_several, several) -> None:
    step = on_several.steps["meta-train-nodes"] if several else chosen.steps["meta-train"]
    given = step.task.inputs.parameters["train_gpus"]
    assert given.component_input_parameter == "pipelinechannel--train_gpus"


def test_the_first_step_holds_the_gpus_against_the_clusters_own_nodes(compiled) -> None:
    step = compiled(read_placement({"node_gpus": 8}, {}), build_shards=1).steps["open-run"]
    assert step.task.inputs.parameters["node_gpus"].runtime_value.constant.number_value == 8
    for name in ("device", "processes"):
        assert step.task.inputs.parameters[name].component_input_parameter == name


def test_the_number_of_gpus_is_text_as_kubeflow_leaves_out_one_that_is_a_number(standard) -> None:
    kinds = standard.spec.root.input_definitions.parameters
    for name in ("train_cpu", "train_memory", "train_gpus", "train_gpu_type"):
        assert kinds[name].parameter_type == kinds["source"].parameter_type
        assert standard.defaults[name], "an empty quantity is refused when the pod is made"


def test_a_secret_that_is_set_where_the_pipeline_is_compiled_is_not_in_it(compiled, monkeypatch) -> None:
    for variable in SECRETS:
        monkeypatch.setenv(variable, MARKER)
    assert MARKER not in compiled().text


@pytest.fixture(scope="module")
def on_several(compiled):
    train = {"gpus": 2, "shm": "4Gi", "scratch": "50Gi"}
    section = {"train": train, "image_pull_secrets": ["registry", "mirror"]}
    return compiled(read_placement(section, {"nodes": 3, "train.timeout": "5h"}))


def test_several_nodes_are_trained_by_a_step_that_hands_on_what_it_was_given(on_several) -> None:
    assert set(on_several.steps) == {*KINDS, "meta-train-nodes"} - {"meta-train"}
    step = on_several.steps["meta-train-nodes"]
    component = on_several.spec.components[step.task.component_ref.name]
    handed_on = {entry.field: entry.apply_to_task for entry in component.task_config_passthroughs}
    fields = dsl.TaskConfigField
    assert handed_on == {
        fields.RESOURCES: True,
        fields.KUBERNETES_NODE_SELECTOR: False,
        fields.KUBERNETES_TOLERATIONS: False,
        fields.ENV: True,
    }
    constants = {
        name: json_format.MessageToDict(value.runtime_value.constant)
        for name, value in step.task.inputs.parameters.items()
        if value.HasField("runtime_value")
    }
    names = ("nodes", "user", "timeout", "shm", "scratch", "runtime", "image", "image_pull_secrets")
    assert {name: constants[name] for name in names} == {
        "nodes": 3,
        "user": IMAGE_USER,
        "timeout": 18000,
        "shm": "4Gi",
        "scratch": "50Gi",
        "image_pull_secrets": ["registry", "mirror"],
        "runtime": "torch-distributed",
        "image": step.container.image,
    }
    assert not step.task.caching_options.enable_cache
    assert step.platform.active_deadline_seconds == 18000
    assert step.platform.security_context.run_as_user == IMAGE_USER
    assert {(entry.name, entry.field_path) for entry in step.platform.field_path_as_env} == {
        ("METALEARN_PIPELINE_RUN_ID", "metadata.labels['pipeline/runid']"),
        ("METALEARN_SERVICE_ACCOUNT", "spec.serviceAccountName"),
    }
    for name in ("train_cpu", "train_memory", "train_gpus", "train_gpu_type"):
        assert step.task.inputs.parameters[name].component_input_parameter == f"pipelinechannel--{name}"


def test_the_step_that_waits_for_machines_has_little_of_its_own_and_no_gpu(on_several) -> None:
    resources, small = on_several.steps["meta-train-nodes"].container.resources, Placement().small
    assert (resources.resource_cpu_request, resources.resource_cpu_limit) == (small.cpu, small.cpu_limit)
    assert (resources.resource_memory_request, resources.resource_memory_limit) == (small.memory, small.memory_limit)
    assert not resources.HasField("accelerator")


def test_a_tracking_address_that_is_compiled_in_is_not_taken_from_the_config_map_again() -> None:
    compiled = few_shot_pipeline(tracking_uri="https://mlflow.example", placement=Placement())
    [executor] = {
        json.dumps(json_format.MessageToDict(entry)["configMapAsEnv"])
        for entry in compiled.platform_spec.platforms["kubernetes"].deployment_spec.executors.values()
    }
    assert "MLFLOW_TRACKING_URI" not in executor
    assert "AWS_ENDPOINT_URL" in executor
