"""The pod that a person asks for on the pipeline's page is checked by the first step, before any is made."""

from typing import Any

import pytest

from metalearn_core.errors import UsageError
from metalearn_core.steps.placement import parse_toleration, training_pod

ASKED = {
    "train_cpu": "8",
    "train_memory": "64Gi",
    "train_gpus": "2",
    "train_gpu_type": "nvidia.com/gpu",
    "train_node_selector": {"cloud.example/pool": "gpu"},
    "train_tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}


def test_what_is_asked_for_in_kubernetes_words_is_taken() -> None:
    pod = training_pod(**ASKED)
    assert (pod.gpus, pod.cpu, pod.memory) == (2, "8", "64Gi")
    assert pod.tolerations[0].kubernetes() == ASKED["train_tolerations"][0]


def test_a_pods_resources_are_in_the_words_of_its_container() -> None:
    own = {"cpu": "8", "memory": "64Gi"}
    assert training_pod(**ASKED).resources() == {"requests": own, "limits": {**own, "nvidia.com/gpu": "2"}}
    assert training_pod(**{**ASKED, "train_gpus": "0"}).resources() == {"requests": own, "limits": own}


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("train_gpus", "64", "input train_gpus: expected 0 to 16, the most that one node has, got 64"),
        ("train_gpus", "many", "input train_gpus: expected 0 to 16, the most that one node has, got 'many'"),
        ("train_gpus", "", "input train_gpus: expected 0 to 16, the most that one node has, got ''"),
        ("train_cpu", "", "input train_cpu: expected cores as 4, 0.5 or 500m, got ''"),
        ("train_memory", "64 GB", "input train_memory: expected a size as 16Gi or 500Mi, got '64 GB'"),
        ("train_node_selector", {"pool": 1}, "input train_node_selector.pool: input should be a valid string, got 1"),
        ("train_tolerations", [{"key": "a", "operator": "Is"}], "input train_tolerations.0.operator: input should be"),
        ("train_tolerations", [{"taint": "a"}], "input train_tolerations.0.taint: extra inputs are not permitted"),
        ("train_tolerations", ["a:b"], "input train_tolerations.0: expected key=value:effect or key:effect"),
        ("train_tolerations", [{"value": "a"}], "input train_tolerations.0: without a key the operator is Exists"),
    ],
)
def test_what_no_pod_can_have_is_one_line_that_names_the_input(name: str, value: Any, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        training_pod(**{**ASKED, name: value})
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_more_gpus_than_a_node_of_this_cluster_has_are_refused() -> None:
    assert training_pod(2, **ASKED).gpus == 2
    with pytest.raises(UsageError, match=r"^input train_gpus: expected 0 to 1, the most that one node has, got 2$"):
        training_pod(1, **ASKED)


@pytest.mark.parametrize(
    ("text", "toleration"),
    [
        ("gpu=yes:NoSchedule", {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}),
        ("gpu:NoExecute", {"key": "gpu", "operator": "Exists", "effect": "NoExecute"}),
        ("nvidia.com/gpu", {"key": "nvidia.com/gpu", "operator": "Exists"}),
    ],
)
def test_a_toleration_is_written_as_its_taint(text: str, toleration: dict[str, str]) -> None:
    assert parse_toleration(text).kubernetes() == toleration
