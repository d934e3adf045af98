"""Learners by name, and how one is made from a description that travels as JSON."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

import torch
from pydantic import Field

from metalearn_core.backbones import BACKBONES, backbone_class, make_backbone
from metalearn_core.backbones.options import parse_options
from metalearn_core.data.manifest import DatasetSpec, Record
from metalearn_core.errors import UsageError, unknown
from metalearn_core.learners.contract import Learner
from metalearn_core.learners.memory.mann import MANN
from metalearn_core.learners.metric.matchingnet import MatchingNet
from metalearn_core.learners.metric.protonet import ProtoNet
from metalearn_core.learners.metric.relationnet import RelationNet
from metalearn_core.learners.model.cnp import CNP
from metalearn_core.learners.model.snail import Snail
from metalearn_core.learners.model.versa import Versa
from metalearn_core.learners.optimization.anil import ANIL
from metalearn_core.learners.optimization.maml import MAML
from metalearn_core.learners.optimization.mamlpp import MAMLPlusPlus
from metalearn_core.learners.optimization.metasgd import MetaSGD
from metalearn_core.learners.optimization.protomaml import ProtoMAML
from metalearn_core.learners.optimization.r2d2 import R2D2
from metalearn_core.learners.optimization.reptile import Reptile
from metalearn_core.learners.transfer.centroid import Centroid
from metalearn_core.learners.transfer.classifier import Transfer
from metalearn_core.learners.transfer.finetune import FineTune
from metalearn_core.plugins import plugin_name, plugins

LEARNERS: dict[str, type[Learner]] = {}
LearnerType = TypeVar("LearnerType", bound=type[Learner])


class LearnerSpec(Record):
    """A learner with its backbone, by name, with the options that differ from the defaults."""

    learner: str
    options: dict[str, Any] = Field(default_factory=dict)
    backbone: str = "conv4"
    backbone_options: dict[str, Any] = Field(default_factory=dict)


def register(learner: LearnerType) -> LearnerType:
    """Make a learner known by the name that it declares; a decorator of its class.

    Raises:
        UsageError: another class has that name already.
    """
    name = learner.info.name
    if LEARNERS.setdefault(name, learner) is not learner:
        raise UsageError(f"learner {name!r} is registered already, by {LEARNERS[name].__qualname__}")
    return learner


for _learner in (
    ProtoNet,
    MatchingNet,
    RelationNet,
    MAML,
    ANIL,
    Reptile,
    MetaSGD,
    MAMLPlusPlus,
    ProtoMAML,
    R2D2,
    Versa,
    CNP,
    Snail,
    MANN,
    Transfer,
    FineTune,
    Centroid,
):
    register(_learner)


def learner_names() -> list[str]:
    """Return the names of all learners, sorted; those of plugins too, which are not loaded for it."""
    return sorted({*LEARNERS, *plugins()})


def learner_class(name: str) -> type[Learner]:
    """Return the learner called `name`; that of a plugin is loaded when it is first asked for.

    Raises:
        UsageError: there is none, or its plugin is broken.
    """
    if name not in LEARNERS and name in plugins():
        _load(plugins()[name])
    if name not in LEARNERS:
        raise unknown("learner", name, learner_names())
    return LEARNERS[name]


def _load(plugin: EntryPoint) -> None:
    """Register the learner of a plugin, whatever is wrong with it being one line."""
    named = f"learner {plugin.name!r}: its plugin, {plugin_name(plugin)},"
    try:
        found = plugin.load()
    except Exception as error:
        raise UsageError(f"{named} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise UsageError(f"{named} is no subclass of Learner")
    if found.info.name != plugin.name:
        raise UsageError(f"{named} calls itself {found.info.name!r}: give the entry point that name")
    register(found)


def resolve_spec(spec: LearnerSpec) -> LearnerSpec:
    """Return the spec with every option written out, defaults included: what a bundle and a checkpoint keep.

    Raises:
        UsageError: an unknown learner, backbone or option, or a bad value.
    """
    kind = learner_class(spec.learner)
    config = parse_options(kind.Config, spec.options, spec.learner)
    options = {**kind.backbone_defaults.get(spec.backbone, {}), **spec.backbone_options}
    backbone = parse_options(backbone_class(spec.backbone).Config, options, spec.backbone)
    return LearnerSpec(
        learner=spec.learner,
        options=config.model_dump(mode="json"),
        backbone=spec.backbone,
        backbone_options=backbone.model_dump(mode="json"),
    )


def parse_spec(learner: str, settings: Mapping[str, Any] | None = None) -> LearnerSpec:
    """Return the spec of `learner` with `settings`, checked, and holding only what was set.

    Args:
        learner: its name.
        settings: by option name: the learner's (`inner_steps`), `backbone` itself, or the backbone's
            (`backbone.width`). Values may be strings.

    Raises:
        UsageError: an unknown learner, backbone or option, or a bad value.
    """
    kind = learner_class(learner)
    rest = dict(settings or {})
    backbone = str(rest.pop("backbone", "conv4"))
    backbone_settings = {n.removeprefix("backbone."): v for n, v in rest.items() if n.startswith("backbone.")}
    own = {name: value for name, value in rest.items() if not name.startswith("backbone.")}
    config = parse_options(kind.Config, own, learner).model_dump(mode="json")
    options = {**kind.backbone_defaults.get(backbone, {}), **backbone_settings}
    backbone_config = parse_options(backbone_class(backbone).Config, options, backbone).model_dump(mode="json")
    return LearnerSpec(
        learner=learner,
        options={name: config[name] for name in own},
        backbone=backbone,
        backbone_options={name: backbone_config[name] for name in backbone_settings},
    )


def make_learner(
    spec: LearnerSpec,
    dataset: DatasetSpec,
    *,
    way: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """Return a new learner, its weights drawn by `seed`; torch's global generator is left as it was.

    Args:
        spec: what to make.
        dataset: what it will learn from.
        way: classes per episode; needed where the learner's way is fixed, and left out of account elsewhere.
        seed: of the initial weights.
        dtype: of weights and arithmetic.

    Raises:
        UsageError: an unknown name or option, a bad value, a missing way, examples of the wrong modality.
    """
    resolved = resolve_spec(spec)
    kind = learner_class(spec.learner)
    config = parse_options(kind.Config, resolved.options, spec.learner)
    kind.check_spec(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make_backbone(resolved.backbone, dataset, resolved.backbone_options).to(dtype)
        learner = kind(dataset, backbone, config, way if kind.info.fixed_way else None)
    return learner.to(dtype)


__all__ = [
    "BACKBONES",
    "LEARNERS",
    "LearnerSpec",
    "learner_class",
    "learner_names",
    "make_learner",
    "parse_spec",
    "register",
    "resolve_spec",
]
