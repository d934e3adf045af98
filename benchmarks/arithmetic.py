"""What MAML's convolutions and matrix products take by themselves: how fast an engine could be at best.

Everything else is left out: batch norm, ReLU, patches, losses, updates, Python around it. The operands lie ready, and
each kernel is the quickest that was found for its shape: oneDNN's convolutions for queries, batched products for
support sets. An inner step is a forward and a backward pass of the support set; where it is differentiated, each of
their products has two derivatives (`metalearn_core.backbones.conv4_tape`).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.resources import available_cores
from metalearn_core.side_by_side import SideBySide

WIDTH, TAPS = 64, 9
LAYERS = ((1, 28), (WIDTH, 14), (WIDTH, 7), (WIDTH, 4))  # channels and side of the input of each; strides of two
SUPPORT, QUERIES, AT_ONCE = 5, 75, 4


@dataclass(frozen=True)
class Convolution:
    """The queries' operands in one layer: one task at a time, as their activations fill the cache.

    Attributes:
        x: (n, c, h, w).
        weight: (o, c, 3, 3).
        slope: (n, o, h / 2, w / 2), the gradient of its output.
    """

    x: Tensor
    weight: Tensor
    slope: Tensor

    @classmethod
    def of(cls, channels: int, side: int, precision: torch.dtype) -> "Convolution":
        """Return operands of normal numbers, channels-last: of one channel too, which their strides alone say."""
        half = (side + 1) // 2
        shapes = (QUERIES, side, side, channels), (WIDTH, 3, 3, channels), (QUERIES, half, half, WIDTH)
        return cls(*(torch.randn(shape).to(precision).permute(0, 3, 1, 2) for shape in shapes))

    def forward(self) -> None:
        """Convolve."""
        F.conv2d(self.x, self.weight, stride=2, padding=1)

    def backward(self) -> None:
        """Find the gradients, that of the first layer's examples left out."""
        wanted = [self.x.shape[1] > 1, True, False]
        torch.ops.aten.convolution_backward(
            self.slope, self.x, self.weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )


@dataclass(frozen=True)
class Products:
    """The support sets' operands in one layer, several tasks at once, by patches; each product has memory of its own.

    Attributes:
        patches: (g, n, 9·c).
        weight: (g, o, 9·c).
        slope: (g, n, o).
        out, patches_gradient, weight_gradient: what the products are written to.
    """

    patches: Tensor
    weight: Tensor
    slope: Tensor
    out: Tensor
    patches_gradient: Tensor
    weight_gradient: Tensor

    @classmethod
    def of(cls, channels: int, side: int, precision: torch.dtype) -> "Products":
        """Return operands of normal numbers."""
        rows, columns = SUPPORT * ((side + 1) // 2) ** 2, TAPS * channels
        patches, weight, slope = (AT_ONCE, rows, columns), (AT_ONCE, WIDTH, columns), (AT_ONCE, rows, WIDTH)
        gradient = weight if channels > 1 else (AT_ONCE, columns, WIDTH)  # quicker turned where patches are narrow
        return cls(*(torch.randn(shape).to(precision) for shape in (patches, weight, slope, slope, patches, gradient)))

    def run(self) -> None:
        """Multiply: the output, and the gradients of weight and (but for the first layer) of patches."""
        first = self.patches.shape[-1] == TAPS
        torch.bmm(self.patches, self.weight.mT, out=self.out)
        left, right = (self.patches, self.slope) if first else (self.slope, self.patches)
        torch.bmm(left.mT, right, out=self.weight_gradient)
        if not first:
            torch.bmm(self.slope, self.weight, out=self.patches_gradient)


class Operands(threading.local):
    """Operands of the layers, each thread's own.

    Args:
        precision: of the queries' convolutions, and of the derivatives of an inner step's products.
    """

    def __init__(self, precision: torch.dtype = torch.float32) -> None:
        self.queries = [Convolution.of(channels, side, precision) for channels, side in LAYERS]
        self.support = [Products.of(channels, side, torch.float32) for channels, side in LAYERS]
        self.tangents = [Products.of(channels, side, precision) for channels, side in LAYERS]


def training(tasks: int, inner_steps: int, precision: torch.dtype) -> Callable[[], None]:
    """Return what does the arithmetic of a second-order training step of so many tasks, on all cores."""
    operands = Operands(precision)

    def chunk(_: int) -> None:
        for _ in range(inner_steps):
            for layer in (*operands.support, *operands.tangents, *operands.tangents[1:]):  # examples do not move
                layer.run()
        for _ in range(AT_ONCE):
            for convolution in operands.queries:
                convolution.forward()
            for convolution in operands.queries:
                convolution.backward()

    return _on_all_cores(chunk, tasks)


def evaluation(tasks: int, inner_steps: int) -> Callable[[], None]:
    """Return what does the arithmetic of evaluating so many tasks, on all cores."""
    operands = Operands()

    def chunk(_: int) -> None:
        for _ in range(inner_steps):
            for layer in operands.support:
                layer.run()
        for _ in range(AT_ONCE):
            for convolution in operands.queries:
                convolution.forward()

    return _on_all_cores(chunk, tasks)


def _on_all_cores(chunk: Callable[[int], None], tasks: int) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), SideBySide(available_cores()) as side_by_side:
            for _ in side_by_side.map(chunk, range(tasks // AT_ONCE)):
                pass

    return run
