"""The model that MLflow serves: it adapts to the support set of each request and labels its queries.

MLflow runs this file by its path ("models from code"), so that nothing is pickled; nobody else imports it. A request is
`{"inputs": [episode, …]}`, an answer `{"predictions": [episode's predictions, …]}`.
"""

import base64
import binascii
import io
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from pydantic import BaseModel


class Example(BaseModel):
    """An example to be labelled: `image`, a PNG or JPEG file in base64, or `vector`, its features."""

    image: str | None = None
    vector: list[float] | None = None


class LabelledExample(Example):
    """An example of the support set."""

    label: str


class Episode(BaseModel):
    """A few labelled examples of each class, and those to be labelled."""

    support: list[LabelledExample]
    query: list[Example]


class QueryPrediction(BaseModel):
    """The most probable label of a query, and the probability of each."""

    label: str
    probabilities: dict[str, float]


class EpisodePrediction(BaseModel):
    """A prediction for each query, in their order."""

    predictions: list[QueryPrediction]


class FewShotModel(PythonModel):  # type: ignore[misc]
    """A bundle behind MLflow's interface; queries never influence one another."""

    def load_context(self, context: Any) -> None:
        """Load the bundle, which is checked by its digests first."""
        from metalearn_core.model import RegressionModel, load_model

        self._model = load_model(context.artifacts["bundle"])
        if isinstance(self._model, RegressionModel):
            raise MlflowException(
                "this model predicts real numbers: only classifiers are served", INVALID_PARAMETER_VALUE
            )

    def predict(self, context: Any, model_input: list[Episode]) -> list[EpisodePrediction]:
        """Adapt to each episode's support set and label its queries; an episode that makes no sense is a status 400."""
        return [self._label(episode, f"inputs[{number}]") for number, episode in enumerate(model_input)]

    def _label(self, episode: Episode, place: str) -> EpisodePrediction:
        from metalearn_core.errors import MetalearnError

        support = [
            self._example(example, f"{place}.support[{number}]") for number, example in enumerate(episode.support)
        ]
        query = [self._example(example, f"{place}.query[{number}]") for number, example in enumerate(episode.query)]
        try:
            found = self._model.predict(support, [example.label for example in episode.support], query)
        except MetalearnError as error:
            raise _bad_request(f"{place}: {error}") from None
        return EpisodePrediction(
            predictions=[
                QueryPrediction(
                    label=str(label),
                    probabilities={
                        str(name): float(value) for name, value in zip(found.classes, probabilities, strict=True)
                    },
                )
                for label, probabilities in zip(found.labels, found.probabilities, strict=True)
            ]
        )

    def _example(self, example: Example, place: str) -> Any:
        modality = self._model.description.input.modality
        if modality == "vector":
            if example.vector is None:
                raise _bad_request(f"{place}: this model takes vectors: give `vector`")
            return example.vector
        if example.image is None:
            raise _bad_request(f"{place}: this model takes images: give `image`, a PNG or JPEG file in base64")
        return _picture(example.image, place)


def _picture(text: str, place: str) -> Any:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
        picture.load()
    except binascii.Error:
        raise _bad_request(f"{place}.image: it is not base64") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad_request(f"{place}.image: it is no picture that can be read: {error}") from None
    return picture


def _bad_request(message: str) -> Exception:
    error: Exception = MlflowException(message, INVALID_PARAMETER_VALUE)
    return error


set_model(FewShotModel())
