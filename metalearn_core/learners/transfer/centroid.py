"""Nearest centroid: a plain classifier's features, transformed, and a class is the mean of its support set's."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Statistics
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner, class_means, membership
from metalearn_core.learners.transfer.pretraining import PretrainedLearner, PretrainingConfig

CENTRE, SHARE = "centre", "centre_share"


class CentroidConfig(PretrainingConfig):
    """The options of centroid; its transforms have the paper's names."""

    transform: Literal["UN", "L2N", "CL2N"] = Field(
        "CL2N", description="features as they are, of unit length, or minus the training examples' mean first"
    )
    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="of a query to a class's centroid")
    scale: float = Field(10.0, gt=0, description="of the logits: moves probabilities, never the predicted class")


class Centroid(PretrainedLearner, EmbeddingLearner):
    """SimpleShot (Wang, Chao, Weinberger, van der Maaten 2019): frozen features, and the nearest class centroid.

    x̂ = (f(x) − m) / ‖f(x) − m‖, with m the mean of f over the training examples (section 3.2, CL2N); a class is the
    mean of its x̂ over the support set; a query belongs to the nearest one. Logits are minus the squared Euclidean
    distance, or the cosine.

    m is a running average over the batches of pretraining, as batch norm's statistics are: the paper goes over the
    training examples once more, which comes to the same as the learning rate goes to zero. The average sets out from
    zero, of which 0.9ⁿ is left after n batches: it is divided by the rest, which is the average of ones.
    """

    info = LearnerInfo(
        name="centroid",
        family="transfer",
        paper="Wang, Chao, Weinberger, van der Maaten 2019, SimpleShot: Nearest-Neighbor Classification for Few-Shot",
        fixed_way=False,
        stream="examples",
    )
    Config: ClassVar[type[LearnerConfig]] = CentroidConfig
    decides_by_distance = True
    config: CentroidConfig
    centre: Tensor
    centre_share: Tensor

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: CentroidConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        self.register_buffer(CENTRE, torch.zeros(backbone.feature_size))
        self.register_buffer(SHARE, torch.zeros(1))

    def running_averages(self) -> dict[str, Tensor]:
        """Return the backbone's, and the two whose quotient is m."""
        return {**super().running_averages(), CENTRE: self.centre, SHARE: self.centre_share}

    def feature_statistics(self, features: Tensor) -> Statistics:
        """Return the mean (1, d) of the features of one batch, and a one (1, 1)."""
        return {CENTRE: features.mean(dim=0, keepdim=True), SHARE: features.new_ones(1, 1)}

    def comparable(self, features: Tensor) -> Tensor:
        """Return the transformed features (b, n, d); of unit length, where they are compared by cosine."""
        features = self._transformed(features)
        return F.normalize(features, dim=-1) if self.config.distance == "cosine" else features

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return the centroids (b, way, d) and which classes are present (b, way), from support features (b, s, d).

        The centroids are the `prototypes` of the state; where the cosine is the measure, they are of unit length.
        """
        members = membership(support_y, way, support_mask, support.dtype)
        with torch.autocast(support.device.type, enabled=False):
            centroids, present = class_means(self._transformed(support), members)
            if self.config.distance == "cosine":
                centroids = F.normalize(centroids, dim=-1)
        return {"prototypes": centroids, "present": present}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return the scaled logits (b, q, way) of query features (b, q, d)."""
        query, centroids = self._transformed(query), state["prototypes"]
        with torch.autocast(query.device.type, enabled=False):
            if self.config.distance == "cosine":
                logits = F.normalize(query, dim=-1) @ centroids.mT
            else:
                squares = query.square().sum(-1, keepdim=True) + centroids.square().sum(-1).unsqueeze(1)
                logits = 2 * query @ centroids.mT - squares
        return torch.where(state["present"].unsqueeze(1), self.config.scale * logits, -torch.inf)

    def _transformed(self, features: Tensor) -> Tensor:
        if self.config.transform == "CL2N":
            features = features - self.centre / self.centre_share.clamp_min(torch.finfo(self.centre.dtype).tiny)
        return features if self.config.transform == "UN" else F.normalize(features, dim=-1)
