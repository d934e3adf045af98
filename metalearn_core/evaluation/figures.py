"""Pictures and curves for pages, as text that stands inside the page."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

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
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(curves.items()):
            x, y = zip(*points, strict=True)
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)
        axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_xlim(left=0)
        if len(curves) > 1:
            axes.legend(frameon=False, loc="best")
        content = io.StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = content.getvalue()[content.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    return svg.replace(_INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{y_label}" ', 1)
