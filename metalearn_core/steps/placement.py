"""What a training's pod is given on a cluster, in Kubernetes' own words: checked before any pod is asked for."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from metalearn_core.data.manifest import Record
from metalearn_core.errors import UsageError

MOST_GPUS = 16
"""The most GPUs that one machine has."""
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_KEY = re.compile(rf"(?:{_DOMAIN}/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_CPU = re.compile(r"(?:\d+(?:\.\d+)?|\d+m)")
_MEMORY = re.compile(r"(\d+)([MGT]i?)")
_BYTES = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_EXTENDED = re.compile(rf"{_DOMAIN}/{_NAME}")


def cpu_cores(text: str) -> float:
    """Return the number of cores that a quantity as `4`, `0.5` or `500m` stands for."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def memory_bytes(text: str) -> int:
    """Return the bytes that a quantity as `16Gi` or `500M` stands for."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a size as 16Gi or 500Mi, got {text!r}")
    return int(match[1]) * _BYTES[match[2]]


def _cpu(text: str) -> str:
    if not _CPU.fullmatch(text) or cpu_cores(text) <= 0:
        raise ValueError(f"expected cores as 4, 0.5 or 500m, got {text!r}")
    return text


def _memory(text: str) -> str:
    if memory_bytes(text) <= 0:
        raise ValueError(f"expected a size as 16Gi or 500Mi, got {text!r}")
    return text


def _gpu_type(text: str) -> str:
    if not _EXTENDED.fullmatch(text):
        raise ValueError(f"expected a resource's name as nvidia.com/gpu, got {text!r}")
    return text


def _gpus(value: Any) -> Any:
    """Take a number, or its text: a Kubeflow cluster ignores a number of GPUs that a pipeline input has as a number."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_GPUS:
        raise ValueError(f"expected 0 to {MOST_GPUS}, the most that one node has, got {value!r}")
    return value


Cpu = Annotated[str, BeforeValidator(str), AfterValidator(_cpu)]
Memory = Annotated[str, BeforeValidator(str), AfterValidator(_memory)]
GpuType = Annotated[str, AfterValidator(_gpu_type)]
Gpus = Annotated[int, BeforeValidator(_gpus)]


class Toleration(Record):
    """A taint that a pod puts up with, by the names that Kubernetes has for its parts; without a key, any taint."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = Field(None, ge=0)  # noqa: N815

    def model_post_init(self, _context: Any) -> None:
        """Refuse what Kubernetes would refuse when the pod is made."""
        if self.key and not _KEY.fullmatch(self.key):
            raise ValueError(f"expected a taint's key as nvidia.com/gpu, got {self.key!r}")
        if not _VALUE.fullmatch(self.value):
            raise ValueError(f"expected a taint's value of letters, digits, '-', '_' and '.', got {self.value!r}")
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists takes no value, got {self.value!r}")
        if not self.key and self.operator == "Equal":
            raise ValueError("without a key the operator is Exists")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with the effect NoExecute")

    def kubernetes(self) -> dict[str, Any]:
        """Return the toleration as a pod has it."""
        return {name: value for name, value in self.model_dump().items() if value not in ("", None)}


def parse_toleration(text: str) -> Toleration:
    """Return the toleration that `key=value:effect` stands for; `key:effect` and `key` tolerate every value.

    Raises:
        ValueError: it is none.
    """
    taint, colon, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    if not key or (colon and effect not in EFFECTS) or (equals and not value):
        raise ValueError(
            f"expected key=value:effect or key:effect, as nvidia.com/gpu=present:NoSchedule, with the effect one of "
            f"{', '.join(EFFECTS)}; got {text!r}"
        )
    values = {"key": key, "operator": "Equal" if equals else "Exists", "value": value, "effect": effect}
    try:
        return Toleration.model_validate(values)
    except ValidationError as error:
        raise ValueError(_complaint(error)) from None


def _toleration(value: Any) -> Any:
    return parse_toleration(value) if isinstance(value, str) else value


def _node_selector(value: Mapping[str, str]) -> Mapping[str, str]:
    for key, label in value.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(label):
            raise ValueError(f"expected a node's label as pool=gpu, got {key!r}: {label!r}")
    return value


Tolerations = tuple[Annotated[Toleration, BeforeValidator(_toleration)], ...]
NodeSelector = Annotated[dict[str, str], AfterValidator(_node_selector)]


class TrainingPod(Record):
    """What one pod of a training gets; a person may choose it for each run.

    Attributes:
        cpu: cores, as `4` or `500m`; requested, and the limit.
        memory: as `16Gi`; requested, and the limit.
        gpus: how many GPUs.
        gpu_type: the name under which the cluster counts its GPUs.
        node_selector: labels that the node must have.
        tolerations: taints that the node may have; in YAML as text or as Kubernetes has them.
    """

    cpu: Cpu = "4"
    memory: Memory = "16Gi"
    gpus: Gpus = 0
    gpu_type: GpuType = "nvidia.com/gpu"
    node_selector: NodeSelector = {}  # noqa: RUF012
    tolerations: Tolerations = ()

    def resources(self) -> dict[str, dict[str, str]]:
        """Return what the pod requests, and its limits, as its container has them."""
        requests = {"cpu": self.cpu, "memory": self.memory}
        gpus = {self.gpu_type: str(self.gpus)} if self.gpus else {}
        return {"requests": requests, "limits": {**requests, **gpus}}


def training_pod(node_gpus: int = MOST_GPUS, **inputs: Any) -> TrainingPod:
    """Return the pod that a pipeline's inputs ask for.

    Args:
        node_gpus: how many GPUs the largest node of the cluster has.
        inputs: fields of `TrainingPod`, each with the prefix `train_`.

    Raises:
        UsageError: one of them is none that a pod may have.
    """
    try:
        pod = TrainingPod.model_validate({name.removeprefix("train_"): value for name, value in inputs.items()})
    except ValidationError as error:
        raise UsageError(f"input train_{explained(error)}") from None
    if pod.gpus > node_gpus:
        raise UsageError(f"input train_gpus: expected 0 to {node_gpus}, the most that one node has, got {pod.gpus}")
    return pod


def explained(error: ValidationError) -> str:
    """Return pydantic's first complaint: the field, and what was found and wanted."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"{name}: {_complaint(error)}"


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
