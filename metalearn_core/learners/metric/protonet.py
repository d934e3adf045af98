"""Prototypical networks: a class is the mean of its support features, and a query belongs to the nearest one."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.learners.contract import (
    EmbeddingLearner,
    LearnerConfig,
    LearnerInfo,
    Outcome,
    State,
    membership,
    query_outcome,
)


class ProtoNetConfig(LearnerConfig):
    """The options of protonet; the paper's learning rate is 1e-3, halved every 2,000 episodes."""

    learning_rate: float = Field(6e-3, gt=0, description="of the outer optimiser at the start")
    train_way: int = Field(60, ge=2, description="classes of a training episode, where none is asked for")
    train_query: int = Field(5, ge=1, description="queries a class of a training episode, where none is asked for")


class ProtoNet(EmbeddingLearner):
    """Prototypical networks (Snell, Swersky, Zemel 2017), with f the backbone.

    c_k = mean of f(x) over the support set of class k (equation 1); p(y = k | x) ∝ exp(−‖f(x) − c_k‖²) (equation 2).

    In training, batch norm takes the statistics of the whole episode, support and queries; their running averages are
    what it uses when inductive. When transductive, support set and queries are each normalised by themselves.
    """

    info = LearnerInfo(
        name="protonet",
        family="metric",
        paper="Snell, Swersky, Zemel 2017, Prototypical Networks for Few-shot Learning",
        fixed_way=False,
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = ProtoNetConfig
    # small initial weights, as in torch's own layers: 0.8 points more on Omniglot after 45 seconds
    backbone_defaults: ClassVar = {"conv4": {"pooling": "max", "gain": 3**-0.5}}
    config: ProtoNetConfig

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return episodes of many classes, with the shot of evaluation."""
        assert isinstance(config, ProtoNetConfig)
        return EpisodeShape(way=config.train_way, shot=shape.shot, query=config.train_query)

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return prototypes (b, way, d), and which classes are present (b, way), from support features (b, s, d)."""
        members = membership(support_y, way, support_mask, support.dtype)
        count = members.sum(dim=1)
        with torch.autocast(support.device.type, enabled=False):
            prototypes = members.mT @ support / count.clamp_min(1).unsqueeze(-1)
        return {"prototypes": prototypes, "present": count > 0}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return minus the squared distance of query features (b, q, d) to each prototype (b, q, way)."""
        prototypes, present = state["prototypes"], state["present"].unsqueeze(1)
        with torch.autocast(query.device.type, enabled=False):
            centre = prototypes.mean(dim=1, keepdim=True)
            query, prototypes = query - centre, prototypes - centre
            squares = query.square().sum(-1, keepdim=True) + prototypes.square().sum(-1).unsqueeze(1)
            logits = 2 * query @ prototypes.mT - squares
        return torch.where(present, logits, -torch.inf)

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Return logits (b, q, way); in training under the batch-norm statistics of the whole episode."""
        return self._joint_logits(episodes)[0] if self.training else super().forward(episodes)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,) under the batch-norm statistics of the whole episode, and those."""
        logits, statistics = self._joint_logits(episodes)
        return query_outcome(logits, episodes, statistics)

    def _joint_logits(self, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        masks = [
            torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
            for labels, mask in ((episodes.support_y, episodes.support_mask), (episodes.query_y, episodes.query_mask))
        ]
        unmasked = episodes.support_mask is None and episodes.query_mask is None
        features, statistics = self.embed_by_episode(x, None if unmasked else torch.cat(masks, dim=1))
        size = episodes.support_x.shape[1]
        support, query = features[:, :size], features[:, size:]
        state = self.adapt_features(support, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.predict_features(state, query), {name: value.detach() for name, value in statistics.items()}
