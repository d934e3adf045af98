"""The transfer-learning baseline: a plain classifier's features, and a linear head fitted to each support set."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner, membership
from metalearn_core.learners.transfer.logistic import fit_logistic
from metalearn_core.learners.transfer.pretraining import PretrainedLearner, PretrainingConfig


class TransferConfig(PretrainingConfig):
    """The options of transfer."""

    inverse_penalty: float = Field(
        10.0, gt=0, description="C of the logistic regression on a support set, as in scikit-learn: larger fits closer"
    )


class Transfer(PretrainedLearner, EmbeddingLearner):
    """Classify the training classes; then logistic regression on frozen features of unit length.

    The recipe of Chen et al. 2019 (Baseline) with the head of Tian et al. 2020: L2-normalised features, logistic
    regression with an L2 penalty.
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

    def comparable(self, features: Tensor) -> Tensor:
        """Return features (b, n, d) of unit length: the head sees no others."""
        return F.normalize(features, dim=-1)

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
