"""What a request says and what is answered: the same to `metalearn serve` and to MLflow's own server."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from metalearn_core.errors import UsageError
from metalearn_core.explanation.neighbours import Neighbours
from metalearn_core.model import Classifier, Model, Prediction
from metalearn_core.serving.footprint import check_support

MOST_EPISODES, MOST_EXAMPLES = 100, 1000
MOST_EXAMPLES_IN_ALL = 2000  # of all episodes of a request, support examples and queries
MOST_FEATURES = 100_000
MOST_CHARACTERS = 200  # of a label: an answer repeats it for each query
MOST_PIXELS = 64_000_000  # of all images of a request, before they are resized
MOST_IMAGE_PIXELS = 16_000_000  # of one of them: it is decoded whole
MOST_PROBABILITIES = 100_000  # of all answers to a request: a small one can ask many queries about many classes


class _Strict(BaseModel):
    """A part of a request. What is wrong is told once a list: a complaint takes far more memory than a wrong value."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > len(cls.model_fields):
            raise PydanticCustomError(
                "too_many_fields",
                "expected no fields but {expected}, got {count} fields",
                {"expected": ", ".join(cls.model_fields), "count": len(values)},
            )
        return values


class Example(_Strict):
    """An example to be labelled: `image`, a PNG or JPEG file in base64, or `vector`, its features."""

    image: str | None = None
    vector: Annotated[list[float] | None, Field(max_length=MOST_FEATURES, fail_fast=True)] = None


class LabelledExample(Example):
    """An example of the support set."""

    label: Annotated[str, Field(max_length=MOST_CHARACTERS)]


Support = Annotated[list[LabelledExample], Field(max_length=MOST_EXAMPLES, fail_fast=True)]
Query = Annotated[list[Example], Field(max_length=MOST_EXAMPLES, fail_fast=True)]


class Episode(_Strict):
    """A few labelled examples of each class, and those to be labelled."""

    support: Support
    query: Query


class NearExample(BaseModel):
    """A support example that a query lies near to: its place in the support set, its label, and how far it is."""

    example: int
    label: str
    distance: float


class QueryPrediction(BaseModel):
    """The most probable label of a query, the probability of each, and the nearest support examples, nearest first."""

    label: str
    probabilities: dict[str, float]
    nearest: list[NearExample]


class EpisodePrediction(BaseModel):
    """A prediction for each query, in their order."""

    predictions: list[QueryPrediction]


class Reader:
    """Brings the examples of one request to a model's input; counts their pixels, and what is to be answered.

    Args:
        model: whose input contract holds.
    """

    def __init__(self, model: Model) -> None:
        self._input, self._pixels, self._probabilities = model.description.input, 0, 0

    def examples(self, examples: Sequence[Example], place: str) -> list[Any]:
        """Return what `Model.adapt` takes of examples; `place` names them in errors.

        Raises:
            UsageError: an example of another kind than the model's, no base64, no picture, or too many pixels.
        """
        return [self._example(example, f"{place}[{number}]") for number, example in enumerate(examples)]

    def count(self, queries: int, classes: int, place: str) -> None:
        """Count the probabilities of an answer.

        Raises:
            UsageError: the request asks for too many.
        """
        self._probabilities += queries * classes
        if self._probabilities > MOST_PROBABILITIES:
            raise UsageError(
                f"{place}query: the answers to a request have at most {MOST_PROBABILITIES:,} probabilities, one a "
                "query and class: ask for fewer queries at once"
            )

    def _example(self, example: Example, place: str) -> Any:
        if self._input.modality == "vector":
            if example.vector is None:
                raise UsageError(f"{place}: this model takes vectors: give `vector`")
            return example.vector
        if example.image is None:
            raise UsageError(f"{place}: this model takes images: give `image`, a PNG or JPEG file in base64")
        return self._picture(example.image, place)

    def _picture(self, text: str, place: str) -> Any:
        from metalearn_core.data.decode import opened_image, standard_image
        from metalearn_core.data.sources.contract import UndecodableError

        channels, size, _ = self._input.example_shape
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:  # of text beyond ASCII, too
            raise UsageError(f"{place}.image: it is not base64") from None
        try:
            with opened_image(io.BytesIO(content)) as image:
                self._count_pixels(image.width * image.height, place)
                image.draft(None, (2 * size, 2 * size))  # as `decode_image` does: the build's pixels, in less time
                return standard_image(image, size, "grey" if channels == 1 else "rgb")
        except UndecodableError as error:
            raise UsageError(f"{place}.image: {error}") from None

    def _count_pixels(self, pixels: int, place: str) -> None:
        if pixels > MOST_IMAGE_PIXELS:
            raise UsageError(
                f"{place}.image: an image has at most {MOST_IMAGE_PIXELS // 1_000_000} megapixels: send it smaller"
            )
        self._pixels += pixels
        if self._pixels > MOST_PIXELS:
            raise UsageError(
                f"{place}.image: the images of a request have at most {MOST_PIXELS // 1_000_000} megapixels in all: "
                "send them smaller"
            )


def adapted(model: Model, reader: Reader, support: Sequence[LabelledExample], place: str) -> Classifier:
    """Adapt a model to the support set of a request.

    Raises:
        UsageError: the support set makes no sense, or is too large for this model; the line names the example.
    """
    check_support(model, len(support), place)
    examples = reader.examples(support, f"{place}support")
    try:
        return model.adapt(examples, [example.label for example in support])
    except UsageError as error:
        raise UsageError(f"{place}{error}") from None


def answered(classifier: Classifier, reader: Reader, query: Sequence[Example], place: str) -> EpisodePrediction:
    """Label the queries of a request.

    Raises:
        UsageError: a query makes no sense; the line names it.
    """
    reader.count(len(query), len(classifier.classes), place)
    examples = reader.examples(query, f"{place}query")
    try:
        found, near = classifier.answer(examples)
    except UsageError as error:
        raise UsageError(f"{place}{error}") from None
    return EpisodePrediction(predictions=_answers(classifier, found, near))


def answer(
    model: Model, episodes: Sequence[Episode], go_on: Callable[[], None] = lambda: None
) -> list[EpisodePrediction]:
    """Adapt to each episode's support set and label its queries; queries never influence one another.

    Args:
        model: loaded.
        episodes: of one request.
        go_on: called before each piece of the work; what it raises ends the work.

    Raises:
        UsageError: there are too many episodes or examples, or an episode makes no sense; the line names it.
    """
    if len(episodes) > MOST_EPISODES:
        raise UsageError(f"inputs: a request has at most {MOST_EPISODES} episodes, got {len(episodes)}")
    examples = sum(len(episode.support) + len(episode.query) for episode in episodes)
    if examples > MOST_EXAMPLES_IN_ALL:
        raise UsageError(
            f"inputs: the episodes of a request have at most {MOST_EXAMPLES_IN_ALL:,} examples in all, got "
            f"{examples:,}: send fewer episodes at once"
        )
    reader, answers = Reader(model), []
    for number, episode in enumerate(episodes):
        place = f"inputs[{number}]."
        go_on()
        classifier = adapted(model, reader, episode.support, place)
        go_on()
        answers.append(answered(classifier, reader, episode.query, place))
    return answers


def _answers(classifier: Classifier, found: Prediction, near: Neighbours) -> list[QueryPrediction]:
    classes, columns = [str(name) for name in found.classes], classifier.support_y.tolist()
    return [
        QueryPrediction(
            label=str(label),
            probabilities=dict(zip(classes, row.tolist(), strict=True)),
            nearest=[
                NearExample(example=example, label=classes[columns[example]], distance=distance)
                for example, distance in zip(examples.tolist(), distances.tolist(), strict=True)
            ],
        )
        for label, row, examples, distances in zip(
            found.labels, found.probabilities, near.nearest, near.distances, strict=True
        )
    ]
