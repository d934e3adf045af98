import pytest
import torch
from torch.nn import functional as F

from metalearn_core.backbones import make_backbone
from metalearn_core.backbones.film import modulate, modulated_layers
from metalearn_core.data.manifest import DatasetSpec

IMAGES = DatasetSpec(
    modality="image", example_shape=(2, 8, 8), dtype="uint8", mean=(0.5,) * 2, std=(0.3,) * 2, train_classes=7
)
CHOICES = {"conv4": {"width": 4, "blocks": 2, "pooling": "stride"}, "mlp": {"hidden": (5, 4)}}


def make(name):
    torch.manual_seed(1)
    backbone = make_backbone(name, IMAGES, CHOICES[name]).double()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return backbone


def decoded(name, weights, x, scale, shift):
    """One episode by torch's own layers, each layer's output scaled and shifted before its ReLU."""
    if name == "mlp":
        x = x.flatten(1)
        for layer in ("layers.0", "layers.1"):
            x = F.relu(scale[layer] * F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]) + shift[layer])
        return x
    for block in ("blocks.0", "blocks.1"):
        x = F.conv2d(x, weights[f"{block}.conv.weight"], padding=1, stride=2)
        norm = f"{block}.norm"
        x = F.batch_norm(x, None, None, weights[f"{norm}.weight"], weights[f"{norm}.bias"], True)
        x = F.relu(scale[norm].view(-1, 1, 1) * x + shift[norm].view(-1, 1, 1))
    return x.flatten(1)


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_modulated_weights_scale_and_shift_every_layers_channels(name):
    backbone, x = make(name), torch.randn(3, 4, 2, 8, 8).double()
    layers = modulated_layers(backbone)
    assert sum(layers.values()) == (8 if name == "conv4" else 9)
    scale, shift = ({layer: torch.randn(3, size).double() for layer, size in layers.items()} for _ in range(2))
    weights = dict(backbone.named_parameters())
    features, _ = backbone.embed(modulate(weights, scale, shift), x)
    for episode in range(3):
        own = ({layer: value[episode] for layer, value in values.items()} for values in (scale, shift))
        torch.testing.assert_close(features[episode], decoded(name, weights, x[episode], *own))
