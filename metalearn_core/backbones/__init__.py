"""Backbones by name: what embeds an example as a feature vector."""

from collections.abc import Mapping
from typing import Any

from metalearn_core.backbones.contract import Backbone
from metalearn_core.backbones.conv4 import Conv4
from metalearn_core.backbones.identity import Identity
from metalearn_core.backbones.mlp import MLP
from metalearn_core.backbones.options import parse_options
from metalearn_core.backbones.resnet12 import ResNet12
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError, unknown

BACKBONES: dict[str, type[Backbone]] = {"conv4": Conv4, "resnet12": ResNet12, "mlp": MLP, "identity": Identity}


def backbone_class(name: str) -> type[Backbone]:
    """Return the backbone called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    return BACKBONES[name]


def make_backbone(name: str, spec: DatasetSpec, options: Mapping[str, Any]) -> Backbone:
    """Return a backbone for the examples of `spec`, initialised by torch's global generator.

    Raises:
        UsageError: an unknown backbone or option, a bad value, or examples that the backbone does not take.
    """
    kind = backbone_class(name)
    config = parse_options(kind.Config, options, name)
    if spec.modality not in kind.modalities:
        raise UsageError(f"{name} takes {' or '.join(kind.modalities)} examples, got {spec.modality}: try backbone=mlp")
    return kind(spec, config)
