"""The weights of layers, as modules that hold them; `functional` has what is computed with them."""

import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """The weight of a convolution, without a bias: the batch norm that follows has one.

    Before a batch norm only the direction of the weights counts: an outer optimiser turns small ones faster. Their
    standard deviation is gain / √fan-in at the start.
    """

    def __init__(self, inputs: int, outputs: int, gain: float, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.normal_(self.weight, std=gain / (kernel * kernel * inputs) ** 0.5)


class Norm(nn.Module):
    """Scale and shift of a batch norm, and its running statistics."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))


class NormalisedConvolution(nn.Module):
    """A convolution and the batch norm that follows it."""

    def __init__(self, inputs: int, outputs: int, gain: float, kernel: int = 3) -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs, gain, kernel)
        self.norm = Norm(outputs)
