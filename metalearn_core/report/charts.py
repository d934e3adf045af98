"""Charts: as SVG elements that stand inside a page and take the colour of the text around them, or as pictures."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4a7dc4", "#cf6a1f", "#36916a", "#c2559d", "#8a6fd1", "#94801a", "#c94f4f", "#3f8f99")
"""At least 3 : 1 against the page's white and against its dark grey."""
WIDTH, HEIGHT = 4.6, 3.0  # inches: two stand side by side on a desk, one fills a phone
LEGEND_LETTERS = 46  # that stand side by side
_MARKERS = "osD^vPX*"
_INK = "#010203"  # replaced by the colour of the text around it, whatever that is

_DOTS_AN_INCH = 200
_NO_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn when it is asked for.

    Attributes:
        description: what it shows, for those who do not see it.
        draw: draws it on axes.
        height: in inches.
    """

    description: str
    draw: Callable[["Axes"], None]
    height: float = HEIGHT

    def svg(self) -> str:
        """Return an SVG element."""
        return _inline(self._drawn("svg", transparent=True).decode(), self.description)

    def png(self) -> bytes:
        """Return a picture, dark on white."""
        return self._drawn("png", dpi=_DOTS_AN_INCH)

    def _drawn(self, kind: str, **options: Any) -> bytes:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        content = io.BytesIO()
        with rc_context({**_STYLE, "svg.hashsalt": self.description}):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure.add_subplot())
            figure.savefig(content, format=kind, metadata=_NO_METADATA[kind], **options)
        return content.getvalue()


def curves_chart(
    curves: Mapping[str, Curve], x_label: str, y_label: str, *, per_cent: bool = True, markers: bool = True
) -> Chart:
    """Return a chart of curves, one a name.

    Args:
        curves: (x, y) points by name.
        x_label, y_label: of the axes.
        per_cent: y are fractions, and drawn as per cent.
        markers: points are marked.
    """
    last = "; ".join(f"{name} ends at {_figure(points[-1][1], per_cent)}" for name, points in curves.items())

    def draw(axes: "Axes") -> None:
        _draw(axes, curves, markers)
        axes.set_xlim(left=0)
        _label(axes, x_label, y_label, per_cent)

    return Chart(f"{y_label} over {x_label}: {last}", draw)


def reliability_chart(curves: Mapping[str, Curve]) -> Chart:
    """Return reliability diagrams: how often answers were right, over the confidence with which they were given."""
    gaps = {name: max((right - sure for sure, right in points), key=abs) for name, points in curves.items()}
    told = "; ".join(f"{name} is off by at most {100 * gap:+.0f} points" for name, gap in gaps.items())

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=_INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        _draw(axes, curves, markers=True)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        _label(axes, "confidence", "right answers", per_cent=True)
        axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())

    return Chart(f"right answers over confidence, on the diagonal where calibrated: {told}", draw)


def layers_chart(changes: Mapping[str, Mapping[str, float]]) -> Chart:
    """Return a chart of how far each layer moved, as points on a logarithmic scale.

    Args:
        changes: by learner and layer, relative to the layer's norm and above zero; layers in their order.
    """
    layers = list(dict.fromkeys(layer for moved in changes.values() for layer in moved))
    most = {name: max(moved, key=lambda layer: moved[layer]) for name, moved in changes.items()}
    told = "; ".join(f"{name} moves {layer} most, by {changes[name][layer]:.1%}" for name, layer in most.items())

    def draw(axes: "Axes") -> None:
        for number, (name, moved) in enumerate(changes.items()):
            places = [layers.index(layer) for layer in moved]
            axes.plot(list(moved.values()), places, **_look(number), linestyle="none", label=name)
        axes.set_yticks(range(len(layers)), layers)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xscale("log")
        _label(axes, "moved by, of the layer's norm", "", per_cent=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.xaxis.set_minor_formatter(lambda *_: "")

    return Chart(f"how far each layer moved: {told}", draw, height=1.1 + 0.21 * len(layers))


def _draw(axes: "Axes", curves: Mapping[str, Curve], markers: bool) -> None:
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        look = _look(number) if markers else {"color": COLOURS[number % len(COLOURS)]}
        axes.plot(x, y, **look, linewidth=1.8, label=name)


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5}


def _label(axes: "Axes", x_label: str, y_label: str, per_cent: bool) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    if per_cent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(3, LEGEND_LETTERS // (max(map(len, names)) + 5)))
    axes.figure.legend(
        handles, names, frameon=False, loc="outside upper left", ncols=columns, borderaxespad=0.2, fontsize="small"
    )


def _figure(value: float, per_cent: bool) -> str:
    return f"{value:.1%}" if per_cent else f"{value:.3g}"


def _inline(svg: str, description: str) -> str:
    """Return the SVG element alone: as wide as its place, described, without names that another chart has too."""
    import html

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    opening = svg[: svg.index(">")]
    sized = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    named = sized.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
    return (named + svg[len(opening) :]).replace(_INK, "currentColor")
