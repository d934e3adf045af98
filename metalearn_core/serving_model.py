"""The model that MLflow serves: it adapts to the support set of each request and labels its queries.

MLflow runs this file by its path ("models from code"), so that nothing is pickled; nobody else imports it. A request is
`{"inputs": [episode, …]}`, an answer `{"predictions": [episode's predictions, …]}`.
"""

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from metalearn_core.errors import MetalearnError
from metalearn_core.serving.episodes import Episode, EpisodePrediction, answer


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
        try:
            return answer(self._model, model_input)
        except MetalearnError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None


set_model(FewShotModel())
