"""Learners whose features no support set changes, and what they compute of the features of classes."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.contract import Statistics
from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.learners.contract import Learner, Outcome, State, query_outcome

EMBEDDED_AT_ONCE = 256
"""Examples, where no gradient is asked for, so that memory does not grow with a support set."""


class EmbeddingLearner(Learner):
    """A learner that embeds each example on its own when inductive, so that an image need be embedded only once.

    In training, batch norm takes the statistics of the whole episode, support and queries; their running averages are
    what it uses when inductive. When transductive, support set and queries are each normalised by themselves.
    """

    @abstractmethod
    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Like `adapt`, from support features (b, s, d)."""

    @abstractmethod
    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Like `predict`, from query features (b, q, d)."""

    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Embed the support sets, then adapt to their features."""
        return self.adapt_features(
            self._embed_episodes(support_x, support_mask), support_y, way=way, support_mask=support_mask
        )

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Embed the queries, then predict from their features."""
        return self.predict_features(state, self._embed_episodes(query_x, query_mask))

    def compared_features(self, state: State, x: Tensor) -> Tensor:
        """Return the learner's own features (b, n, d) of x (b, n, *x); a support set does not change them."""
        del state
        return self.comparable(self.embedded(x))

    def embedded(self, x: Tensor) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x), which `adapt_features`, `predict_features`, `comparable` take."""
        return self._embed_episodes(x, None)

    def comparable(self, features: Tensor) -> Tensor:
        """Return features (b, n, d) in the space where near examples are alike: see `compared_features`."""
        return features

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Return logits (b, q, way); in training under the batch-norm statistics of the whole episode."""
        return self._joint_logits(episodes)[0] if self.training else super().forward(episodes)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,) under the batch-norm statistics of the whole episode, and those."""
        logits, statistics = self._joint_logits(episodes)
        return query_outcome(logits, episodes, statistics)

    def _joint_logits(self, episodes: EpisodeBatch) -> tuple[Tensor, Statistics]:
        support, query, statistics = self._joint_features(episodes)
        state = self.adapt_features(support, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.predict_features(state, query), statistics

    def _joint_features(self, episodes: EpisodeBatch) -> tuple[Tensor, Tensor, Statistics]:
        """Return the features of support (b, s, d) and queries (b, q, d), and their statistics, without gradient."""
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        masks = [
            torch.ones(part.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            for part, mask in ((episodes.support_x, episodes.support_mask), (episodes.query_x, episodes.query_mask))
        ]
        unmasked = episodes.support_mask is None and episodes.query_mask is None
        features, statistics = self.embed_by_episode(x, None if unmasked else torch.cat(masks, dim=1))
        size = episodes.support_x.shape[1]
        return features[:, :size], features[:, size:], {name: value.detach() for name, value in statistics.items()}

    def _embed_episodes(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return features (b, n, d) of x (b, n, *x) in the batch-norm mode that is set; zeros where masked out."""
        if self.batch_norm == "inductive":
            examples = x.flatten(0, 1)
            at_once = len(examples) if torch.is_grad_enabled() else EMBEDDED_AT_ONCE  # a graph holds them all anyway
            features = torch.cat([self.embed(part) for part in torch.split(examples, max(1, at_once))])
            features = features.view(*x.shape[:2], -1)
            return features if mask is None else torch.where(mask.unsqueeze(-1), features, 0.0)
        return self.embed_by_episode(x, mask)[0]

    def embed_by_episode(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Embed each episode's examples under their own batch-norm statistics.

        Args:
            x: (b, n, *x).
            mask: (b, n) bool; what is masked out has no part in the statistics, and features of zero.

        Returns:
            features (b, n, d), and the statistics, each (b, channels).
        """
        weights = dict(self.backbone.named_parameters())
        features, statistics = self.backbone.embed(weights, self.standardise(x), mask=mask)
        return features.to(self.mean.dtype), statistics

    def embed(self, x: Tensor) -> Tensor:
        """Return features (n, d) of examples (n, *x), each by itself, under the running batch-norm statistics."""
        weights, running = dict(self.backbone.named_parameters()), self.backbone.running_statistics()
        features, _ = self.backbone.embed(weights, self.standardise(x).unsqueeze(0), running)
        return features[0].to(self.mean.dtype)


def membership(labels: Tensor, way: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return one-hot rows (b, s, way) of labels (b, s), zero where masked out."""
    rows = F.one_hot(labels, way).to(dtype)
    return rows if mask is None else rows * mask.unsqueeze(-1)


def class_means(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means over classes, zero for those without members, and which have any.

    Args:
        values: (b, s, d).
        members: (b, s, way), as `membership` returns them.

    Returns:
        (b, way, d), and (b, way) bool.
    """
    count = members.sum(dim=1)
    return members.mT @ values / count.clamp_min(1).unsqueeze(-1), count > 0
