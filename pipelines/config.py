"""What a run is asked for: options of the command line over a file over the defaults, checked before any work."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metalearn_core.data.manifest import LARGEST_SEED, BuildOptions
from metalearn_core.data.shape import ClassSpan, TaskSpan
from metalearn_core.data.sources.open import GLYPHS
from metalearn_core.errors import UsageError, invalid, unknown
from metalearn_core.storage import read_file
from metalearn_core.storage.objects import is_address
from pipelines.recipes import config_file

if TYPE_CHECKING:
    from metalearn_core.steps.requests import TrainingRequest

DEFAULT_TRAIN_SECONDS = 25.0
SPANS = ("way", "shot", "train_way", "train_shot")
BUDGETS = ("train_episodes", "train_seconds")
CLUSTER = "cluster"  # the section of a file that says what the steps get on a cluster; see pipelines/cluster
OUTSIDE = {
    "learners",
    "backbone",
    "settings",
    "sweep",
    "sweep_samples",
    "seeds",
    "build_shards",
    CLUSTER,
}  # no inputs of the pipeline
BACKBONE = "backbone"  # the owner of options that every learner's backbone gets


class RunConfig(BaseModel):
    """Everything that decides what a pipeline run does; a configuration file has these names as its keys.

    Attributes:
        source: `glyphs`, a folder of images, or a Parquet file or folder.
        learners: by name; each is trained with `settings[name]`, and once for each point of a sweep over its options.
        backbone: that every learner is built around.
        settings: options by learner, or for every backbone: `{"maml": {"inner_steps": 5}, "backbone": {"width": 32}}`.
        sweep: values to try by learner and option: `{"maml": {"inner_lr": [0.1, 0.4]}}`.
        sweep_samples: how many points of each learner's grid are drawn; None: all.
        way, shot, query: of evaluation episodes; `train_…`: of training episodes, None: as the recipe wants. Ways and
            shots may be ranges, as 5-20.
        train_within_domain: the classes of a training episode come from one domain.
        train_episodes, train_seconds: the training budget of each learner, one of the two.
        eval_episodes, eval_seed: evaluation episodes of each split, and the seed of their stream.
        seed: of the initial weights and the stream of training episodes; of a sweep's drawing too.
        seeds: how many models of each learner are trained, with the seeds from `seed` on.
        patience: stop training after so many validations in a row without a better one; 0: never.
        precision: of training; `auto` is bf16 where the processor computes it natively.
        device, processes, checkpoint_seconds: what a training may use; see `TrainingResources`.
        build_shards: steps that share the decoding of the source.
        gate: rules of promotion, by the names of `GateRules`.
        cluster: what the steps get on a cluster, by the names of `Placement` (pipelines/cluster).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "glyphs"
    learners: tuple[str, ...] = Field(("protonet", "maml", "transfer"), min_length=1)
    backbone: str = "conv4"
    settings: dict[str, dict[str, Any]] = {}
    sweep: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]] = {}
    sweep_samples: int | None = Field(None, ge=1)
    way: ClassSpan = 5
    shot: TaskSpan = 1
    query: int = Field(15, ge=1)
    train_way: ClassSpan | None = None
    train_shot: TaskSpan | None = None
    train_query: int | None = Field(None, ge=1)
    train_within_domain: bool = False
    train_episodes: int | None = Field(None, ge=1)
    train_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    eval_episodes: int = Field(1000, ge=2)
    eval_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    seeds: int = Field(1, ge=1, le=100)
    patience: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = Field(1, ge=1, le=1024)
    checkpoint_seconds: float = Field(60.0, ge=0, allow_inf_nan=False)
    image_size: int = 28
    color: Literal["auto", "grey", "rgb"] = "auto"
    split_by: Literal["auto", "class", "domain"] = "auto"
    split_file: str = ""
    split_from: str = ""
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15)
    split_seed: int = 0
    rotations: Literal["train", "all", "none"] = "train"
    min_examples: int = Field(1, ge=1)
    max_unreadable: float = Field(0.05, ge=0, le=1)
    build_shards: int = Field(1, ge=1, le=1000)
    experiment: str = "few-shot"
    model_name: str = "few-shot"
    gate: dict[str, Any] = {}
    cluster: Any = None


def read_config(
    file: Path | None, given: Mapping[str, Any], assignments: Sequence[str], sweeps: Sequence[str]
) -> RunConfig:
    """Return the configuration of a run.

    Args:
        file: YAML with names of `RunConfig`, or the name of a recipe; None: no file.
        given: options from the command line that were given (not None).
        assignments: `maml.inner_steps=5`, `backbone.width=32`, `gate.min_accuracy=0.8`.
        sweeps: `maml.inner_lr=0.1,0.4`.

    Raises:
        UsageError: an unknown name, a value that it cannot have, or both kinds of budget.
    """
    values = _read_yaml(file) if file else {}
    if any(name in given for name in BUDGETS):
        values = {name: value for name, value in values.items() if name not in BUDGETS}
    spans = {name: _scalar(str(value)) for name, value in given.items() if name in SPANS}  # a number, where it is one
    values = {**values, **given, **spans}
    settings = _options_by_owner(values, "settings")
    gate = dict(_mapping(values, "gate"))
    for text in assignments:
        if text.startswith(f"{BACKBONE}="):
            values[BACKBONE] = text.removeprefix(f"{BACKBONE}=").strip()
            continue
        owner, option, value = _assignment(text, "--set")
        if owner == "gate":
            gate[option] = value
        else:
            settings.setdefault(owner, {})[option] = value
    sweep = _options_by_owner(values, "sweep")
    for text in sweeps:
        owner, option, value = _assignment(text, "--sweep")
        sweep.setdefault(owner, {})[option] = [_scalar(part) for part in str(value).split(",")]
    try:
        config = RunConfig.model_validate({**values, "settings": settings, "gate": gate, "sweep": sweep})
    except ValidationError as error:
        raise invalid("option", error, RunConfig) from None
    if config.train_episodes and config.train_seconds:
        raise UsageError("train_episodes and train_seconds are both given: the training budget is one of the two")
    if config.seed + config.seeds - 1 > LARGEST_SEED:
        raise UsageError(f"seeds: {config.seeds} seeds from {config.seed} on go beyond {LARGEST_SEED}")
    if not config.train_episodes and not config.train_seconds:
        config = config.model_copy(update={"train_seconds": DEFAULT_TRAIN_SECONDS})
    return config


def read_section(file: Path, name: str) -> Any:
    """Return the value of one name in a configuration file; None where it is not there.

    Raises:
        UsageError: the file cannot be read, or is no YAML with names.
    """
    return _read_yaml(file).get(name)


def _options_by_owner(values: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    owners = _mapping(values, name)
    return {str(owner): dict(_mapping(owners, owner, f"{name}.{owner}")) for owner in owners}


def _mapping(values: Mapping[str, Any], name: str, shown: str = "") -> Mapping[str, Any]:
    value = values.get(name) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"option {shown or name}: expected names with values below it, got {value!r}")
    return value


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_file(config_file(file)).decode())
    except OSError as error:
        raise UsageError(f"--config {file}: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {file}: it is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config {file}: expected option names with values, got {type(content).__name__}")
    return content


def _assignment(text: str, option: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    owner, dot, key = name.strip().partition(".")
    if not (equals and dot and owner and key):
        raise UsageError(f"{option} {text!r}: expected owner.option=value, as in maml.inner_steps=5")
    return owner, key, _scalar(value) if option == "--set" else value


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, say
        return text


def learner_items(config: RunConfig) -> list[str]:
    """Return the learners of a run as the pipeline's loop takes them: JSON of each `LearnerSpec`, sweeps unrolled.

    With several training seeds each stands there once for every seed, which is beside its options then.

    Raises:
        UsageError: an unknown learner, backbone or option, or a value that it cannot have.
    """
    from metalearn_core.learners import parse_spec

    _check_owners(config)
    shared = {f"backbone.{name}": value for name, value in config.settings.get(BACKBONE, {}).items()}
    items = []
    for learner in dict.fromkeys(config.learners):
        for point in _grid(config, learner):
            own = {**shared, **config.settings.get(learner, {}), **point}
            spec = parse_spec(learner, {"backbone": config.backbone, **own})
            items.append(spec.model_dump(mode="json"))
    if config.seeds > 1:
        seeds = range(config.seed, config.seed + config.seeds)
        items = [{**item, "seed": seed} for item in items for seed in seeds]
    return list(dict.fromkeys(json.dumps(item) for item in items))


def checked_items(config: RunConfig) -> list[str]:
    """Return what `learner_items` does; refuse a learner that cannot take the run's episodes.

    Raises:
        UsageError: likewise, or there is such a learner.
    """
    from metalearn_core.steps import requests

    items = learner_items(config)
    requests.check_learners(requests.learner_items(items), train_request(config))
    return items


def _check_owners(config: RunConfig) -> None:
    """Refuse options for what the run does not use: most likely a misspelled name."""
    from metalearn_core.learners import learner_class, learner_names

    for learner in config.learners:
        learner_class(learner)
    for name in [*config.settings, *config.sweep]:
        if name in learner_names() and name not in config.learners:
            raise UsageError(f"options are set for {name}, which this run does not train: give --learner {name} too")
        if name not in {*config.learners, BACKBONE}:
            raise unknown("owner of options", name, [*config.learners, BACKBONE, "gate"])


def _grid(config: RunConfig, learner: str) -> list[dict[str, Any]]:
    """Return the points of a learner's sweep, in a fixed order; one empty point where there is no sweep."""
    shared = {f"{BACKBONE}.{name}": values for name, values in config.sweep.get(BACKBONE, {}).items()}
    space = {**shared, **config.sweep.get(learner, {})}
    if not space:
        return [{}]
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    grid = ParameterGrid(space)
    if config.sweep_samples is None or config.sweep_samples >= len(grid):
        return list(grid)
    return list(ParameterSampler(space, config.sweep_samples, random_state=config.seed))


def train_request(config: RunConfig) -> "TrainingRequest":
    """Return what the learners of a run are trained for."""
    from metalearn_core.steps.requests import training_request

    return training_request(
        way=config.way,
        shot=config.shot,
        query=config.query,
        train_way=config.train_way or 0,
        train_shot=config.train_shot or 0,
        train_query=config.train_query or 0,
        train_within_domain=config.train_within_domain,
        episodes=config.train_episodes or 0,
        seconds=config.train_seconds or 0,
        seed=config.seed,
        patience=config.patience,
        precision=config.precision,
    )


def check_source(config: RunConfig) -> None:
    """Refuse a source or options of its build that the build itself would refuse, before any step starts.

    Raises:
        UsageError: an option's value is none that it may have.
        MetalearnError: the source or a file is not there, or cannot be read.
    """
    from metalearn_core.data.build import earlier_build
    from metalearn_core.data.sources.open import open_source
    from metalearn_core.steps.data import build_options, earlier_place

    opened = open_source(config.source)
    if config.build_shards > 1 and config.color == "auto" and opened.grey_test() is not None:
        raise UsageError("build_shards: a part of a build does not see every image: give --color grey or rgb")
    names = BuildOptions.model_fields.keys() - {"split_file"}
    options = build_options(config.split_file, **config.model_dump(include=set(names)))
    earlier_build(options, earlier_place(config.split_from))


def pipeline_arguments(config: RunConfig, items: Sequence[str], storage: str, command: str) -> dict[str, Any]:
    """Return the pipeline's inputs, by the names that the KFP page shows.

    Args:
        config: what is asked for.
        items: JSON of each learner.
        storage: a folder or an `s3://` address.
        command: that reproduces the run.
    """
    values = config.model_dump(mode="json", exclude=OUTSIDE)
    optional = {name: values[name] or 0 for name in ("train_query", *BUDGETS)}
    optional["train_seconds"] = float(optional["train_seconds"])
    spans = {name: str(values[name] or 0) for name in SPANS}
    locations = {name: _location(values[name]) for name in ("source", "split_file", "split_from")}
    return {
        **values,
        **optional,
        **spans,
        **locations,
        "learners": list(items),
        "storage": _location(storage),
        "command": command,
    }


def _location(text: str) -> str:
    """Return a location that means the same in a step: the steps run elsewhere."""
    if text in {"", GLYPHS} or is_address(text):
        return text
    return str(Path(text).expanduser().resolve())
