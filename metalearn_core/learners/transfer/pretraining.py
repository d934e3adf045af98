"""The pretraining that all transfer learners share: an ordinary classifier of the training classes."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Statistics
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import ExampleLearner, LearnerConfig, Outcome


class PretrainingConfig(LearnerConfig):
    """The options of every transfer learner's pretraining."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    batch_size: int = Field(128, ge=2, description="examples a training step; a step counts as one episode")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all training classes")


class PretrainedLearner(ExampleLearner):
    """A backbone with a linear classifier of the training classes on top, which only training uses.

    Always inductive: in training batch norm takes the statistics of each batch of examples, and their running averages
    are what it uses on support sets and queries.
    """

    config: PretrainingConfig

    def __init__(
        self, spec: DatasetSpec, backbone: Backbone, config: PretrainingConfig, way: int | None = None
    ) -> None:
        super().__init__(spec, backbone, config, way)
        self.classifier = nn.Linear(backbone.feature_size, spec.train_classes)

    def train_examples(self, x: Tensor, y: Tensor) -> Outcome:
        """Return loss and accuracy of examples x (n, *x) among the training classes y (n,)."""
        weights = dict(self.backbone.named_parameters())
        features, statistics = self.backbone.embed(weights, self.standardise(x).unsqueeze(0))
        features = features[0].to(self.mean.dtype)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.classifier(features)
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(dim=-1) == y).to(loss.dtype).mean()
        used = {name: value.detach() for name, value in statistics.items()}
        return Outcome(loss[None], accuracy[None], {**used, **self.feature_statistics(features.detach())})

    def feature_statistics(self, features: Tensor) -> Statistics:
        """Return what else training averages: of the features (n, d) of one batch, each (1, …) by its buffer's name."""
        del features
        return {}
