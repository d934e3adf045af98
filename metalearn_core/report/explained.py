"""Why the learners said what they said: answers with their neighbours, what adapting moved, a map of the classes."""

from collections import Counter
from dataclasses import dataclass

from metalearn_core.explanation.answers import Answer, Example, NearExample
from metalearn_core.explanation.embedding_map import EmbeddingMap
from metalearn_core.report.charts import COLOURS, curves_chart, layers_chart
from metalearn_core.report.content import ReportContent
from metalearn_core.report.pictures import Album, Picture

PICTURE_WIDTH = 4.2
MARGIN = 3.0
"""Of a picture on the map, and around the map, in per cent of its width."""
WIDEST, NARROWEST = 2.2, 1.0


@dataclass(frozen=True)
class Neighbour:
    """A support example near a query, its class, and whether that is the query's own or the one it was taken for."""

    picture: Picture | None
    name: str
    distance: float
    own: bool
    predicted: bool


@dataclass(frozen=True)
class PicturedAnswer:
    """An answer with pictures of the query and of the support examples near it."""

    answer: Answer
    picture: Picture | None
    name: str
    predicted_name: str
    nearest: tuple[Neighbour, ...]


@dataclass(frozen=True)
class AdaptationReport:
    """What adapting moves.

    Attributes:
        layers: chart of the layers' movements; empty where no learner moves any.
        losses: chart of the loss on the support set over inner steps; likewise.
        from_zero: by learner, the layers that start at zero and have no relative movement.
        unmoved: the learners that adapt without changing a weight.
    """

    layers: str
    losses: str
    from_zero: dict[str, tuple[str, ...]]
    unmoved: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A class on the map: its place in per cent of width and height, with or without a picture."""

    left: float
    top: float
    name: str
    colour: str
    picture: Picture | None


@dataclass(frozen=True)
class MapReport:
    """The map of the classes: width over height, the classes, and the domains' colours."""

    map: EmbeddingMap
    aspect: float
    places: tuple[Place, ...]
    colours: dict[str, str]
    picture_width: float = PICTURE_WIDTH


def answers(content: ReportContent, album: Album) -> tuple[PicturedAnswer, ...]:
    """Return the explained answers of the selected learner."""
    explanation = content.selected.explanation
    return tuple(
        PicturedAnswer(
            one,
            _picture(album, one.query),
            album.name(one.query.class_id, one.query.rotation),
            album.name(one.predicted_id, one.predicted_rotation),
            tuple(_neighbour(album, one, near) for near in one.nearest),
        )
        for one in (explanation.answers if explanation else ())
    )


def adaptation(content: ReportContent) -> AdaptationReport | None:
    """Return what adapting moves; None where no learner was explained."""
    known = {one.name: one.explanation.adaptation for one in content.learners if one.explanation}
    if not known:
        return None
    changes, losses, from_zero = {}, {}, {}
    for name, moved in known.items():
        relative = {_short(one.layer): one.relative for one in moved.layers if one.relative}
        if relative:
            changes[name] = relative
        if zero := tuple(_short(one.layer) for one in moved.layers if one.relative is None and one.change):
            from_zero[name] = zero
        if moved.support_losses:
            losses[name] = [(float(one.steps), one.loss) for one in moved.support_losses]
    return AdaptationReport(
        layers=layers_chart(changes).svg() if changes else "",
        losses=curves_chart(losses, "inner steps", "loss on the support set", per_cent=False).svg() if losses else "",
        from_zero=from_zero,
        unmoved=tuple(name for name, moved in known.items() if not any(one.change for one in moved.layers)),
    )


def class_map(content: ReportContent, album: Album) -> MapReport | None:
    """Return the selected learner's map of the test classes; None where there is none.

    Pictures stand where they hide no other one; the other classes are dots. The domains with the most classes have
    colours of their own.
    """
    found = content.selected.explanation.map if content.selected.explanation else None
    if found is None:
        return None
    left, right = min(point.x for point in found.points), max(point.x for point in found.points)
    low, high = min(point.y for point in found.points), max(point.y for point in found.points)
    width, height = max(right - left, 1e-12), max(high - low, 1e-12)
    aspect = min(max(width / height, NARROWEST), WIDEST)
    shown_width = max(width, height * aspect)
    per_unit = (100 - 2 * MARGIN - PICTURE_WIDTH) / shown_width
    classes = content.manifest.classes
    sizes = Counter(classes[point.class_id].domain for point in found.points)
    colours = {name: COLOURS[number] for number, (name, _) in enumerate(sizes.most_common(len(COLOURS)))}
    places: list[Place] = []
    pictured: list[tuple[float, float]] = []
    for point in found.points:
        x = 50 + (point.x - (left + right) / 2) * per_unit
        y = 50 - (point.y - (low + high) / 2) * per_unit * aspect
        free = all(
            abs(x - other_x) > PICTURE_WIDTH or abs(y - other_y) > PICTURE_WIDTH * aspect
            for other_x, other_y in pictured
        )
        picture = next(iter(album.of_class(point.class_id, point.rotation)), None) if free else None
        if picture is not None:
            pictured.append((x, y))
        colour = colours.get(classes[point.class_id].domain, "var(--soft)")
        places.append(Place(x, y, album.name(point.class_id, point.rotation), colour, picture))
    return MapReport(found, aspect, tuple(sorted(places, key=lambda place: place.picture is not None)), colours)


def _neighbour(album: Album, answer: Answer, near: NearExample) -> Neighbour:
    identity = (near.example.class_id, near.example.rotation)
    return Neighbour(
        _picture(album, near.example),
        album.name(*identity),
        near.distance,
        own=identity == (answer.query.class_id, answer.query.rotation),
        predicted=identity == (answer.predicted_id, answer.predicted_rotation),
    )


def _picture(album: Album, example: Example) -> Picture | None:
    return album.of_row(example.row, example.class_id, example.rotation)


def _short(layer: str) -> str:
    return layer.removeprefix("backbone.")
