import re

import pytest

from metalearn_core.report.charts import COLOURS, curves_chart, layers_chart, reliability_chart

CURVES = {"first <b>": [(0.0, 0.25), (1.0, 0.5)], "second": [(0.5, 0.125)]}


def luminance(colour):
    """Relative luminance of the Web Content Accessibility Guidelines 2.2."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", ["#ffffff", "#1c222b"])
def test_curves_stand_out_from_white_and_from_dark_grey(colour, background):
    assert contrast(colour, background) >= 3


@pytest.mark.parametrize(
    "draw",
    [
        lambda: curves_chart(CURVES, "seconds", "accuracy"),
        lambda: reliability_chart(CURVES),
        lambda: layers_chart({"maml": {"conv": 0.01, "head": 2.0}}),
    ],
    ids=["curves", "reliability", "layers"],
)
def test_a_chart_is_one_element_that_takes_width_and_colour_from_its_place(draw):
    svg = draw().svg()
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
    opening = svg[: svg.index(">")]
    assert "viewBox" in opening
    assert not re.search(r" (width|height)=", opening)
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "<metadata" not in svg


def test_a_chart_says_its_figures_in_words():
    assert "first &lt;b&gt; ends at 50.0%; second ends at 12.5%" in curves_chart(CURVES, "seconds", "accuracy").svg()
    assert "first &lt;b&gt; is off by at most -50 points" in reliability_chart(CURVES).svg()
    assert "maml moves head most, by 200.0%" in layers_chart({"maml": {"conv": 0.01, "head": 2.0}}).svg()


def test_points_lie_where_their_figures_say():
    svg = layers_chart({"maml": {"near": 0.01, "middle": 0.1, "far": 1.0}}).svg()
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: #4a7dc4', svg)
    (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, place)) for place in found[:3]]
    assert x3 - x2 == pytest.approx(x2 - x1, rel=1e-3), "each ten times the one before: equal steps"
    assert y1 < y2 < y3, "in their order, from the top"


def test_the_same_curves_give_the_same_chart():
    assert curves_chart(CURVES, "x", "y").svg() == curves_chart(CURVES, "x", "y").svg()
