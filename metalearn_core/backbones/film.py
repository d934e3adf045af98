"""Feature-wise linear modulation (Perez et al. 2018): an episode scales and shifts the channels of a backbone's layers.

A layer's output W∘x + b becomes γ ⊙ (W∘x + b) + β, channel by channel. That is the same layer with weight γ ⊙ W and
bias γ ⊙ b + β: weights of an episode's own, which `Backbone.embed` takes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metalearn_core.backbones.contract import Backbone, Weights


def modulated_layers(backbone: Backbone) -> dict[str, int]:
    """Return the channels of each layer that can be modulated, by its name: those that have a weight and a bias.

    So these are linear layers and batch norms; a convolution before a batch norm is modulated by that.
    """
    layers = {}
    for name, layer in backbone.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        if {"weight", "bias"} <= set(own):
            layers[name] = len(own["bias"])
    return layers


def modulate(weights: Weights, scale: Mapping[str, Tensor], shift: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of g episodes.

    Args:
        weights: shared, by the names of `named_parameters()`.
        scale, shift: γ and β (g, channels) of each layer, by its name.
    """
    own = dict(weights)
    for name, gamma in scale.items():
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        own[f"{name}.weight"] = gamma.view(*gamma.shape, *[1] * (weight.dim() - 1)) * weight
        own[f"{name}.bias"] = gamma * bias + shift[name]
    return own


class FilmGenerator(nn.Module):
    """Generates γ and β of every layer of a backbone from a vector; at first γ is near 1, and β near 0.

    Args:
        inputs: size of the vector.
        hidden: units of the hidden layer.
        backbone: whose layers.
    """

    def __init__(self, inputs: int, hidden: int, backbone: Backbone) -> None:
        super().__init__()
        self.layers = modulated_layers(backbone)
        outputs = 2 * sum(self.layers.values())
        self.network = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, vector: Tensor, weights: Weights) -> dict[str, Tensor]:
        """Return the weights of g episodes, from a vector (g, inputs) of each and the shared weights."""
        scale, shift = (
            dict(zip(self.layers, torch.split(part, list(self.layers.values()), dim=1), strict=True))
            for part in self.network(vector).chunk(2, dim=1)
        )
        return modulate(weights, {name: 1 + gamma for name, gamma in scale.items()}, shift)
