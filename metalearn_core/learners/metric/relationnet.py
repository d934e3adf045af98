"""Relation networks: a small network compares a query's feature map with each class's, and scores how they fit."""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Statistics, Weights
from metalearn_core.backbones.functional import convolve, fold_norm, normalise
from metalearn_core.backbones.layers import NormalisedConvolution
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, Outcome, State, masked_mean
from metalearn_core.learners.embedding import EmbeddingLearner, membership
from metalearn_core.learners.pretrainable import PretrainableConfig

_RELATION = "relation."


class RelationNetConfig(PretrainableConfig):
    """The options of relationnet; the paper's learning rate is 1e-3, halved every 100,000 episodes."""

    learning_rate: float = Field(1e-3, gt=0, description="of the outer optimiser at the start")
    hidden: int = Field(8, ge=1, le=4096, description="size of the first of the relation module's linear layers")
    train_query: int | None = Field(
        None, ge=1, description="queries per class of a training episode; none: the paper's (5-way 1-shot: 19)"
    )


class RelationNet(EmbeddingLearner):
    """Relation networks (Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018), with f the backbone.

    r_kj = g(C(Σ f(xᵢ) over the support set of class k, f(x_j)))   (equation 1, section 3.3 for several shots)

    is how well query x_j fits class k, from 0 to 1, with C the concatenation of maps in depth and g the relation
    module. The loss is the squared error to what it should be, (r_kj − 1[y_j = k])² (equation 2), averaged over the
    pairs of an episode.

    By that loss r_kj estimates the probability that query and class match, each pair by itself; so the logits are
    log r_kj, and what their softmax gives are the scores of a query, divided by their sum.

    In training the batch norms of the relation module take the statistics of an episode's pairs; inductive, their
    running averages. When transductive the pairs of the queries are normalised by themselves.

    Raises:
        UsageError: the backbone gives no maps.
    """

    info = LearnerInfo(
        name="relationnet",
        family="metric",
        paper="Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, Learning to Compare: Relation Network for Few-Shot",
        fixed_way=False,
        modalities=("image",),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = RelationNetConfig
    # the paper's: maps of 7×7 of an image of 28×28, so that the relation module has something to compare
    backbone_defaults: ClassVar = {"conv4": {"pooling": "max", "halvings": 2}}
    config: RelationNetConfig

    def __init__(
        self, spec: DatasetSpec, backbone: Backbone, config: RelationNetConfig, way: int | None = None
    ) -> None:
        super().__init__(spec, backbone, config, way)
        if backbone.map_shape is None:
            raise UsageError(
                f"relationnet compares feature maps, backbone {type(backbone).__name__.lower()} gives vectors: take an "
                "image backbone that gives maps, as conv4"
            )
        self.map_shape = backbone.map_shape
        self.relation = RelationModule(backbone.map_shape, config.hidden)

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the way and shot of evaluation, with the paper's number of queries (section 4.1).

        That is what a class of 20 examples has left, and with 20 ways 10 (1-shot) or 5.
        """
        assert isinstance(config, RelationNetConfig)
        papers = max(1, 20 - shape.shot) if shape.way < 20 else 10 if shape.shot == 1 else 5
        return replace(shape, query=config.train_query or papers)

    def running_averages(self) -> dict[str, Tensor]:
        """Return the backbone's, and the relation module's."""
        return {**super().running_averages(), **{_RELATION + n: value for n, value in self.relation.named_buffers()}}

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return the sums (b, way, d) over classes of support features (b, s, d), and which are present (b, way)."""
        members = membership(support_y, way, support_mask, support.dtype)
        with torch.autocast(support.device.type, enabled=False):
            sums = members.mT @ support
        return {"sums": sums, "present": members.sum(dim=1) > 0}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return log r (b, q, way) of query features (b, q, d), under the running batch-norm statistics."""
        running = {name: buffer.unsqueeze(0) for name, buffer in self.relation.named_buffers()}
        return self._logits(state, query, running, None)[0]

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Embed the queries, then predict from their features; see `Learner.predict`."""
        if self.batch_norm == "inductive":
            return super().predict(state, query_x, query_mask)
        query = self._embed_episodes(query_x, query_mask)
        return self._logits(state, query, None, _pairs(state["present"], query_mask, query))[0]

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,): the mean squared error of the scores of each episode's pairs."""
        logits, statistics = self._joint_logits(episodes)
        there = torch.isfinite(logits.detach())
        errors = (logits.exp() - F.one_hot(episodes.query_y, episodes.way)).square().sum(dim=-1) / there.sum(dim=-1)
        correct = (logits.detach().argmax(dim=-1) == episodes.query_y).to(errors.dtype)
        mask = episodes.query_mask
        return Outcome(masked_mean(errors, mask), masked_mean(correct, mask), statistics)

    def _joint_logits(self, episodes: EpisodeBatch) -> tuple[Tensor, Statistics]:
        support, query, statistics = self._joint_features(episodes)
        state = self.adapt_features(support, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        unmasked = episodes.support_mask is None and episodes.query_mask is None
        # An absent class has no part in the statistics either. A step that is recorded cannot wait to hear whether one
        # is absent, and need not: its episodes are drawn with all classes.
        whole = unmasked and (_is_recorded(query.device) or bool(state["present"].all()))
        keep = None if whole else _pairs(state["present"], episodes.query_mask, query)
        logits, own = self._logits(state, query, None, keep)
        return logits, {**statistics, **{_RELATION + name: value.detach() for name, value in own.items()}}

    def _logits(
        self, state: State, query: Tensor, statistics: Statistics | None, keep: Tensor | None
    ) -> tuple[Tensor, Statistics]:
        """Return log r (b, q, way) and the batch-norm statistics that were used; see `RelationModule.forward`."""
        classes, queries = (maps.view(*maps.shape[:2], *self.map_shape) for maps in (state["sums"], query))
        rows, parts = [], []
        for number in range(len(queries)):  # an episode at a time: its pairs are many
            scores, used = self.relation(
                classes[number], queries[number], statistics, None if keep is None else keep[number]
            )
            rows.append(F.logsigmoid(scores))
            parts.append(used)
        logits = torch.where(state["present"].unsqueeze(1), torch.stack(rows), -torch.inf)
        return logits, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class RelationModule(nn.Module):
    """g: two blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pool, then two linear layers (section 3.4).

    A map of a single row or column is not pooled.

    Args:
        map_shape: (c, h, w) of the maps; the blocks have c channels.
        hidden: size of the first linear layer.
    """

    def __init__(self, map_shape: tuple[int, int, int], hidden: int) -> None:
        super().__init__()
        channels, height, width = map_shape
        gain = 2**0.5
        self.blocks = nn.ModuleList(
            NormalisedConvolution(inputs, channels, gain) for inputs in (2 * channels, channels)
        )
        self.pooled = []
        for _ in self.blocks:
            self.pooled.append(min(height, width) > 1)
            height, width = (height // 2, width // 2) if self.pooled[-1] else (height, width)
        self.hidden = nn.Linear(channels * height * width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(
        self, classes: Tensor, queries: Tensor, statistics: Statistics | None, keep: Tensor | None
    ) -> tuple[Tensor, Statistics]:
        """Compare each query of an episode with each class.

        The first convolution is of two maps one upon the other, which is the sum of a convolution of each: those are
        convolved once, not once a pair.

        Args:
            classes: (way, c, h, w).
            queries: (q, c, h, w).
            statistics: batch-norm statistics to use, each (1, channels); None: those of the pairs themselves.
            keep: (q, way) bool; other pairs have no part in the statistics, and scores of zero. None: all.

        Returns:
            scores (q, way) before their sigmoid, and the statistics that were used, each (1, channels).
        """
        weights: Weights = dict(self.named_parameters())
        used = dict(statistics or {})
        hidden = queries
        for number, pooled in enumerate(self.pooled):
            name = f"blocks.{number}"
            weight, bias = weights[f"{name}.conv.weight"], None
            scale, shift = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
            mean, var = f"{name}.norm.mean", f"{name}.norm.var"
            if statistics is not None:
                weight, bias = fold_norm(weight, scale, shift, statistics[mean], statistics[var])
            if number == 0:
                of_classes, of_queries = weight.chunk(2, dim=1)
                pairs = convolve(queries, of_queries, 1, 1, bias).unsqueeze(1) + convolve(classes, of_classes, 1, 1)
                hidden = pairs.flatten(0, 1) if keep is None else pairs[keep]
            else:
                hidden = convolve(hidden, weight, 1, 1, bias)
            if statistics is None:
                hidden, used[mean], used[var] = normalise(hidden, scale, shift, 1)
            hidden = F.relu(F.max_pool2d(hidden, 2) if pooled else hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            flat = hidden.flatten(1).to(self.score.weight.dtype)
            scores = self.score(F.relu(self.hidden(flat))).squeeze(-1)
        if keep is not None:
            scores = scores.new_zeros(keep.shape).masked_scatter(keep, scores)
        return scores.view(len(queries), len(classes)), used


def _is_recorded(device: torch.device) -> bool:
    """Return whether what is computed on a device is being recorded as a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _pairs(present: Tensor, query_mask: Tensor | None, query: Tensor) -> Tensor:
    """Return which pairs (b, q, way) of a query and a class there are."""
    pairs = present.unsqueeze(1).expand(-1, query.shape[1], -1)
    return pairs if query_mask is None else pairs & query_mask.unsqueeze(-1)
