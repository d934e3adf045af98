"""The transfer-learning baseline: a plain classifier's features, and a linear head fitted to each support set."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import ExampleLearner, LearnerConfig, LearnerInfo, Outcome, State, membership
from metalearn_core.learners.transfer.logistic import fit_logistic


class TransferConfig(LearnerConfig):
    """The options of transfer."""

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser at the start")
    batch_size: int = Field(128, ge=2, description="examples a training step; a step counts as one episode")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all training classes")
    inverse_penalty: float = Field(
        10.0, gt=0, description="C of the logistic regression on a support set, as in scikit-learn: larger fits closer"
    )


class Transfer(ExampleLearner):
    """Classify the training classes; then logistic regression on frozen features of unit length.

    The recipe of Chen et al. 2019 (Baseline) with the head of Tian et al. 2020: L2-normalised features, logistic
    regression with an L2 penalty. Always inductive: batch norm uses its running statistics on support sets and queries.
    """

    info = LearnerInfo(
        name="transfer",
        family="transfer",
        paper="Tian, Wang, Krishnan, Tenenbaum, Isola 2020, Rethinking Few-Shot Image Classification",
        fixed_way=False,
        stream="examples",
    )
    Config: ClassVar[type[LearnerConfig]] = TransferConfig
    config: TransferConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: TransferConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        self.classifier = nn.Linear(backbone.feature_size, spec.train_classes)

    def train_examples(self, x: Tensor, y: Tensor) -> Outcome:
        """Return loss and accuracy of examples x (n, *x) among the training classes y (n,)."""
        features, statistics = self.embed_by_episode(x.unsqueeze(0))
        with torch.autocast(x.device.type, enabled=False):
            logits = self.classifier(features[0])
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(dim=-1) == y).to(loss.dtype).mean()
        return Outcome(loss[None], accuracy[None], {name: value.detach() for name, value in statistics.items()})

    def compared_features(self, state: State, x: Tensor) -> Tensor:
        """Return features (b, n, d) of unit length: the head sees no others."""
        return F.normalize(super().compared_features(state, x), dim=-1)

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return the head (b, way, d) with its intercept (b, way), and which classes are present (b, way)."""
        members = membership(support_y, way, support_mask, support.dtype)
        with torch.no_grad(), torch.autocast(support.device.type, enabled=False):
            weight, intercept = fit_logistic(F.normalize(support, dim=-1), members, self.config.inverse_penalty)
        return {"weight": weight, "intercept": intercept, "present": members.sum(dim=1) > 0}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return the head's logits (b, q, way) of query features (b, q, d)."""
        with torch.autocast(query.device.type, enabled=False):
            logits = F.normalize(query, dim=-1) @ state["weight"].mT + state["intercept"].unsqueeze(1)
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf)
