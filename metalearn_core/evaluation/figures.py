"""Pictures and curves for pages, as text that stands inside the page."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_SIDE = 64
SMALLEST_SIDE = 28
COLOURS = ("#4a7dc4", "#d9772b", "#3f9b6b", "#c2559d", "#8a6fd1", "#a08a1f", "#c94f4f", "#4d9fa8")
"""Readable on white and on dark grey."""
_MARKERS = "osD^vPX*"
_INK = "#010203"  # replaced by the colour of the text around it, whatever that is

Curve = Sequence[tuple[float, float]]


def png_address(example: npt.NDArray[np.uint8]) -> str:
    """Return an image (c, h, w), uint8, as a `data:` address of a PNG with sides of at most 64 pixels."""
    pixels = example[0] if len(example) == 1 else np.ascontiguousarray(example.transpose(1, 2, 0))
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def curves_svg(curves: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """Draw curves, one a name, as an SVG element without a background, in the colour of the text around it.

    Args:
        curves: (x, y) points by name; y are fractions, drawn as per cent.
        x_label, y_label: of the axes.
    """

    def draw(axes: "Axes") -> None:
        _draw_curves(axes, curves)
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)

    return _svg(draw, (7.2, 3.2), y_label)


def reliability_svg(curves: Mapping[str, Curve], lowest: float) -> str:
    """Draw accuracy over confidence, one curve a name, beside the line on which a calibrated learner lies.

    Args:
        curves: (confidence, accuracy) of each bin, by name; fractions.
        lowest: the least confidence that there can be: 1 / way.
    """
    from matplotlib.ticker import PercentFormatter

    def draw(axes: "Axes") -> None:
        axes.plot([lowest, 1], [lowest, 1], color=_INK, alpha=0.5, linewidth=1, linestyle="--", label="calibrated")
        _draw_curves(axes, curves)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("confidence")

    return _svg(draw, (7.2, 3.6), "accuracy of queries by confidence")


def _draw_curves(axes: "Axes", curves: Mapping[str, Curve]) -> None:
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)


def _svg(draw: Callable[["Axes"], None], inches: tuple[float, float], y_label: str) -> str:
    """Return what is drawn on axes whose y are fractions, as an SVG element of the page's width."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "metalearn",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    with rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel(y_label)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, loc="best")
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = content.getvalue()[content.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    return svg.replace(_INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{y_label}" ', 1)
