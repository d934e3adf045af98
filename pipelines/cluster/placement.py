"""What the steps get on a cluster: one record, from a file's `cluster:` section and the command line's options."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from metalearn_core.errors import UsageError, unknown
from metalearn_core.steps.placement import (
    MOST_GPUS,
    Cpu,
    Memory,
    NodeSelector,
    Tolerations,
    TrainingPod,
    cpu_cores,
    explained,
    memory_bytes,
    parse_toleration,
)

IMAGE_USER = 10001
"""The user and group that the image's steps run as; infra/images/Containerfile makes them."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])")
_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_ENTRY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _duration(value: Any) -> Any:
    """Take `90s`, `30m`, `12h`, `2d`, or seconds."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = int(match[1]) * _SECONDS[match[2]] if match else value
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
        raise ValueError(f"expected a time as 90s, 30m, 12h or 2d, got {value!r}")
    return seconds


Duration = Annotated[int, BeforeValidator(_duration)]


class Frozen(BaseModel):
    """Immutable, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepPlacement(Frozen):
    """What a step of one kind gets.

    Attributes:
        cpu, memory: that the scheduler sets aside.
        cpu_limit, memory_limit: that the step may use at most; a step over its memory is killed.
        shm: size of /dev/shm, part of the step's memory; None: the container runtime's 64 MB.
        scratch: size of /tmp on the node's disk; None: no limit but the node's.
        timeout: after which the step is ended, in seconds or as `12h`.
        retries: how often a step that failed is tried again.
        backoff: before the first retry, in seconds or as `1m`; each later one waits twice as long.
        node_selector: labels that the node must have.
        tolerations: taints that the node may have.
    """

    cpu: Cpu
    cpu_limit: Cpu
    memory: Memory
    memory_limit: Memory
    shm: Memory | None = None
    scratch: Memory | None = None
    timeout: Duration
    retries: int = Field(2, ge=0, le=100)
    backoff: Duration = 60
    node_selector: NodeSelector = {}
    tolerations: Tolerations = ()

    @model_validator(mode="after")
    def _holds_together(self) -> "StepPlacement":
        if cpu_cores(self.cpu) > cpu_cores(self.cpu_limit):
            raise ValueError(f"cpu {self.cpu} is more than cpu_limit {self.cpu_limit}")
        if memory_bytes(self.memory) > memory_bytes(self.memory_limit):
            raise ValueError(f"memory {self.memory} is more than memory_limit {self.memory_limit}")
        _check_shm(self.shm, self.memory_limit)
        return self


class TrainPlacement(TrainingPod):
    """What a training step gets: its pod, which may be chosen anew for each run, and what is set when compiled.

    Attributes:
        shm, scratch, timeout, retries, backoff: as of any step.
    """

    shm: Memory | None = "2Gi"
    scratch: Memory | None = None
    timeout: Duration = 24 * 3600
    retries: int = Field(3, ge=0, le=100)
    backoff: Duration = 60

    @model_validator(mode="after")
    def _holds_together(self) -> "TrainPlacement":
        _check_shm(self.shm, self.memory)
        return self


def _check_shm(shm: str | None, memory: str) -> None:
    if shm and memory_bytes(shm) > memory_bytes(memory):
        raise ValueError(f"shm {shm} is more than the step's memory, {memory}, which it is part of")


class Reference(Frozen):
    """An entry of a secret or a config map, by its name: its value is nowhere but in the cluster.

    Attributes:
        name: of the secret or config map.
        key: of the entry.
        optional: the step starts without it where it is not there.
    """

    name: str = Field(pattern=f"^{_OBJECT.pattern}$")
    key: str = Field(pattern=f"^{_ENTRY.pattern}$")
    optional: bool = False


def _reference(value: Any) -> Any:
    """Take `name/key` too."""
    if not isinstance(value, str):
        return value
    name, slash, key = value.partition("/")
    if not (slash and _OBJECT.fullmatch(name) and _ENTRY.fullmatch(key)):
        raise ValueError(
            "expected name/key of an entry, as metalearn-storage/AWS_ACCESS_KEY_ID"
        )  # its value may be here
    return {"name": name, "key": key}


def _variables(value: Any) -> Any:
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValueError(f"expected the name of a variable, got {name!r}")
    return value


References = Annotated[dict[str, Annotated[Reference, BeforeValidator(_reference)]], BeforeValidator(_variables)]


def _standing(name: str, *variables: str) -> dict[str, Reference]:
    return {variable: Reference(name=name, key=variable, optional=True) for variable in variables}


SECRETS = {
    **_standing("metalearn-storage", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    **_standing("metalearn-tracking", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    **_standing("metalearn-webhook", "METALEARN_WEBHOOK_URL"),
}
CONFIG_MAPS = _standing(
    "metalearn", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "METALEARN_KFP_URL"
)

Kind = Literal["small", "build", "evaluate", "train"]


class Placement(Frozen):
    """What all steps get on a cluster.

    Attributes:
        small: steps that ask and write a little: open_run, select_learner, register, a meta_train that waits for nodes.
        build: decode_part, build_episodes, validate_episodes.
        evaluate: evaluate, promote, close_run, which have models or the dataset in memory.
        train: meta_train.
        nodes: machines that train one learner together; several need Kubeflow Trainer.
        runtime: Kubeflow Trainer's runtime that several nodes run in.
        node_gpus: how many GPUs the largest node of the cluster has.
        parallelism: how many learners are trained at a time, and how many parts of a source decoded; 0: all.
        secret_env, config_map_env: variables of every step, by the entry that has the value. Those of the manifests in
            infra/kubernetes stand here, and may be missing in a cluster; what is given is added, and must be there.
        image_pull_policy: when a node asks for the image anew.
        image_pull_secrets: of the registry that has the image.
        service_account: that the run's pods act as; KFP takes it with the run, not in the pipeline; empty: KFP's own.
    """

    small: StepPlacement = StepPlacement(
        cpu="250m", cpu_limit="1", memory="1Gi", memory_limit="2Gi", timeout=3600, retries=3
    )
    build: StepPlacement = StepPlacement(
        cpu="2", cpu_limit="4", memory="4Gi", memory_limit="8Gi", shm="1Gi", timeout=12 * 3600
    )
    evaluate: StepPlacement = StepPlacement(
        cpu="2", cpu_limit="4", memory="4Gi", memory_limit="8Gi", shm="1Gi", timeout=6 * 3600
    )
    train: TrainPlacement = TrainPlacement()
    nodes: int = Field(1, ge=1, le=1024)
    runtime: str = Field("torch-distributed", pattern=f"^{_OBJECT.pattern}$")
    node_gpus: int = Field(MOST_GPUS, ge=1, le=MOST_GPUS)
    parallelism: int = Field(0, ge=0, le=10_000)
    secret_env: References = {}
    config_map_env: References = {}
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Annotated[str, Field(pattern=f"^{_OBJECT.pattern}$")], ...] = ()
    service_account: str = Field("", pattern=f"^(?:{_OBJECT.pattern})?$")

    @model_validator(mode="after")
    def _fits_a_node(self) -> "Placement":
        if self.train.gpus > self.node_gpus:
            raise ValueError(
                f"train.gpus is {self.train.gpus}, and the largest node has node_gpus {self.node_gpus}: take more nodes"
            )
        both = sorted(self.secrets().keys() & self.config_map_env.keys())
        if both:
            raise ValueError(f"{both[0]} comes from a secret and from a config map: give one of the two")
        return self

    def secrets(self) -> dict[str, Reference]:
        """Return the variables that come from secrets."""
        standing = {name: entry for name, entry in SECRETS.items() if name not in self.config_map_env}
        return {**standing, **self.secret_env}

    def config_maps(self) -> dict[str, Reference]:
        """Return the variables that come from config maps."""
        standing = {name: entry for name, entry in CONFIG_MAPS.items() if name not in self.secret_env}
        return {**standing, **self.config_map_env}

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's inputs by which a person chooses the training's pod, by the names on the KFP page."""
        train = self.train
        return {
            "train_cpu": train.cpu,
            "train_memory": train.memory,
            "train_gpus": str(train.gpus),
            "train_gpu_type": train.gpu_type,
            "train_node_selector": dict(train.node_selector),
            "train_tolerations": [entry.kubernetes() for entry in train.tolerations],
        }


def read_placement(
    section: Any,
    given: Mapping[str, Any],
    *,
    tolerations: Sequence[str] = (),
    node_selector: Sequence[str] = (),
    secret_env: Sequence[str] = (),
    config_map_env: Sequence[str] = (),
) -> Placement:
    """Return what the steps get, from a file's section and the options of the command line, which win.

    Args:
        section: the value of `cluster:` in a configuration file, by the names of `Placement`; None: there is none.
        given: options that were given, by the names of `Placement`, or of `TrainPlacement` with `train.` before.
        tolerations: of the training's pod, as `nvidia.com/gpu=present:NoSchedule`.
        node_selector: likewise, as `pool=gpu`.
        secret_env, config_map_env: as `NAME=secret/key`.

    Raises:
        UsageError: an unknown name, or a value that it cannot have.
    """
    if section is not None and not isinstance(section, Mapping):
        raise UsageError(f"option cluster: expected names with values below it, got {section!r}")
    values: dict[str, Any] = dict(section or {})
    for name in ("small", "build", "evaluate"):
        values[name] = {**getattr(Placement(), name).model_dump(exclude_unset=True), **_below(values, name)}
    train = dict(_below(values, "train"))
    train.update({name.removeprefix("train."): value for name, value in given.items() if name.startswith("train.")})
    if tolerations:
        train["tolerations"] = [_option("--toleration", parse_toleration, text) for text in tolerations]
    if node_selector:
        train["node_selector"] = dict(_pair("--node-selector", text, "pool=gpu") for text in node_selector)
    values["train"] = train
    values.update({name: value for name, value in given.items() if "." not in name})
    for name, texts in (("secret_env", secret_env), ("config_map_env", config_map_env)):
        option = "--" + name.replace("_", "-")
        pairs = dict(_pair(option, text, "NAME=name/key", hidden=True) for text in texts)
        values[name] = {**_below(values, name), **pairs}
    try:
        return Placement.model_validate(values)
    except ValidationError as error:
        raise _refused(error) from None


def _below(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"option cluster.{name}: expected names with values below it, got {value!r}")
    return value


def _option(option: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _pair(option: str, text: str, example: str, *, hidden: bool = False) -> tuple[str, str]:
    """Return both sides of an equals sign; what may be a secret's value, given by mistake, is not repeated."""
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise UsageError(f"{option}: expected {example}" + ("" if hidden else f", got {text!r}"))
    return name, value


def _refused(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(["cluster", *place])
    if first["type"] == "extra_forbidden":
        below = Placement.model_fields if len(place) == 1 else _model(place[0]).model_fields
        return unknown("option", name, [".".join(["cluster", *place[:-1], field]) for field in below])
    if place and place[0] in {"secret_env", "config_map_env"} and first["type"] != "value_error":
        return UsageError(f"option {name}: {first['msg'].lower()}")  # what was given may be a secret
    complaint = explained(error)
    return UsageError(f"option cluster{'.' if place else ''}{complaint}")


def _model(name: str) -> type[BaseModel]:
    if name in {"secret_env", "config_map_env"}:
        return Reference
    return TrainPlacement if name == "train" else StepPlacement
