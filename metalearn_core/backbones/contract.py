"""What every backbone is: a pure function from weights and examples to features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

Weights = Mapping[str, Tensor]
Statistics = Mapping[str, Tensor]


class Backbone(nn.Module, ABC):
    """A network whose forward pass takes its weights as an argument, so that tasks can have weights of their own.

    Its parameters are the shared (meta-)weights; its buffers, named like the statistics, the running statistics of
    its batch norms, which metric learners use when inductive.

    Attributes:
        feature_size: d, the size of a feature vector.
    """

    feature_size: int

    @abstractmethod
    def embed(
        self, weights: Weights, x: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Statistics]:
        """Embed g groups of n examples each; a group is what a batch norm takes its statistics over.

        Args:
            weights: by the names of `named_parameters()`. A weight may have a leading dimension g: each group its own.
            x: (g, n, *x) standardised examples.
            statistics: batch-norm statistics to use; None: those of each group of x itself.

        Returns:
            features (g, n, d), and the statistics that were used: for each batch norm `<name>.mean` and `<name>.var`
            (biased), each (g, channels); differentiable.
        """

    def running_statistics(self) -> Statistics:
        """Return the running statistics, each (1, channels)."""
        return {name: buffer.unsqueeze(0) for name, buffer in self.named_buffers()}
