"""What an answer is judged by: accuracy where examples belong to classes, the mean squared error in regression."""

from dataclasses import dataclass

from metalearn_core.data.manifest import DatasetSpec


@dataclass(frozen=True)
class Metric:
    """A figure of merit of one learner.

    Attributes:
        name: in the names of metrics, and in JSON.
        sign: 1 where more is better, −1 where less is.
    """

    name: str
    sign: int

    def better(self, one: float, other: float) -> bool:
        """Return whether one value is better than another."""
        return self.sign * one > self.sign * other

    def shown(self, value: float) -> str:
        """Return a value as people read it."""
        return f"{self.name} {value:.1%}" if self.sign > 0 else f"{self.name} {value:.4g}"


ACCURACY = Metric("accuracy", 1)
SQUARED_ERROR = Metric("mse", -1)


def metric_of(spec: DatasetSpec) -> Metric:
    """Return what is measured on data of this kind."""
    return ACCURACY if spec.target_size is None else SQUARED_ERROR
