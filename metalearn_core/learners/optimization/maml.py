"""MAML: meta-learn the weights from which a few gradient steps on a support set lead to a good classifier."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone, Statistics
from metalearn_core.backbones.functional import channels_last, linear
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import (
    Learner,
    LearnerConfig,
    LearnerInfo,
    Outcome,
    State,
    membership,
    query_outcome,
)
from metalearn_core.learners.optimization.inner_gradient import taped_gradient
from metalearn_core.learners.optimization.query_gradient import episode_by_episode

EPISODES_AT_ONCE = 4
TAPED_AT_ONCE = 2_600_000  # numbers; 10 MB in fp32
_BACKBONE, _STATISTICS = "backbone.", "statistics."


class MAMLConfig(LearnerConfig):
    """The options of maml.

    The paper's for Omniglot are learning rate 1e-3, α 0.4, meta-batch 32, and as many queries as shots. Ours give more
    accuracy on validation episodes, batch norm being inductive and the budget minutes.
    """

    learning_rate: float = Field(3e-3, gt=0, description="of the outer optimiser (Adam) at the start")
    meta_batch: int = Field(4, ge=1, description="episodes an outer step")
    inner_lr: float = Field(0.1, gt=0, description="α, the size of an inner step")
    inner_steps: int = Field(1, ge=1, le=1000, description="inner steps in training")
    eval_steps: int = Field(5, ge=1, le=1000, description="inner steps in evaluation and prediction")
    first_order: bool = Field(False, description="leave out second derivatives: the outer gradient at θ′, taken as θ's")
    train_query: int = Field(5, ge=1, description="queries a class of a training episode, where none is asked for")


class MAML(Learner):
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017), with a linear head on the backbone.

    θ′ᵢ = θ − α ∇θ L(θ; support set i), several times over (section 2.2, algorithm 1). The outer loss is
    L(θ′ᵢ; queries i), and its gradient flows through the inner steps. The head starts at zero, so that no class is
    preferred; it is meta-learned like the rest.

    When inductive, in training too, queries are normalised by the support set's batch-norm statistics under θ′ᵢ; when
    transductive (as in the paper) they normalise one another.
    """

    info = LearnerInfo(
        name="maml",
        family="optimization",
        paper="Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        fixed_way=True,
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = MAMLConfig
    backbone_defaults: ClassVar = {"conv4": {"pooling": "stride"}}
    config: MAMLConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: MAMLConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        assert way is not None
        self.head = nn.Linear(backbone.feature_size, way)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the way and shot of evaluation, with the recipe's number of queries."""
        assert isinstance(config, MAMLConfig)
        return EpisodeShape(way=shape.way, shot=shape.shot, query=config.train_query)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that what their inner steps remember fits: small operations cost less together."""
        remembered = self.config.inner_steps * shape.way * shape.shot * self.backbone.tape_values
        return max(1, min(EPISODES_AT_ONCE, TAPED_AT_ONCE // remembered)) if remembered else 1

    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Return the fast weights θ′ of b episodes and, when inductive, the support sets' statistics under them.

        Works under `torch.no_grad` and `torch.inference_mode` too, and then keeps no graph.

        Raises:
            UsageError: `way` is not the one that the head was made for.
        """
        if way != self.way:
            raise UsageError(f"maml was trained for {self.way}-way episodes, got {way}-way ones: train it for that way")
        if support_mask is not None:
            episodes = zip(support_x, support_y, support_mask, strict=True)
            return _stack([self.adapt(x[None, keep], y[None, keep], way=way) for x, y, keep in episodes])
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if support_x.is_inference():
                support_x, support_y = support_x.clone(), support_y.clone()
            state = self._fast_state(self.standardise(support_x), support_y, differentiable)
        return state if differentiable else {name: value.detach() for name, value in state.items()}

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Return logits (b, q, way) of the fast weights."""
        statistics = {name.removeprefix(_STATISTICS): v for name, v in state.items() if name.startswith(_STATISTICS)}
        if query_mask is not None and not statistics:
            return self._predict_unmasked(state, query_x, query_mask)
        return self._logits(state, self.standardise(query_x), statistics or None)[0]

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,): the mean cross-entropy over the unmasked queries of each episode."""
        state = self.adapt(episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)

        if state["present"].device.type != "cpu":  # a GPU is quickest with all at once
            return query_outcome(self.predict(state, episodes.query_x, episodes.query_mask), episodes)

        def outcome_of(own: State, number: int) -> Outcome:
            episode = episodes[number : number + 1]
            return query_outcome(self.predict(own, episode.query_x, episode.query_mask), episode)

        return episode_by_episode(outcome_of, state)

    def _predict_unmasked(self, state: State, query_x: Tensor, query_mask: Tensor) -> Tensor:
        """Predict when queries normalise one another, and some are padding: episode by episode, without that."""
        rows = []
        for number, (x, keep) in enumerate(zip(query_x, query_mask, strict=True)):
            own = {name: value[number, None] for name, value in state.items()}
            logits = self.predict(own, x[None, keep])[0]
            rows.append(logits.new_zeros(len(keep), logits.shape[-1]).masked_scatter(keep.unsqueeze(-1), logits))
        return torch.stack(rows)

    def _fast_state(self, x: Tensor, y: Tensor, differentiable: bool) -> dict[str, Tensor]:
        """Take the inner steps on standardised x (b, s, *x), keeping their graph only where `differentiable`."""
        assert self.way is not None
        present = membership(y, self.way, None, x.dtype).amax(dim=1) > 0
        keep: Callable[[Tensor], Tensor] = (lambda value: value) if differentiable else _cut
        weights = {
            name: keep(channels_last(parameter).expand(len(x), *parameter.shape))
            for name, parameter in self.named_parameters()
        }
        second_order = differentiable and not self.config.first_order
        for _ in range(self.config.inner_steps if self.training else self.config.eval_steps):
            gradients = self._inner_gradient(weights, x, y, present, second_order)
            weights = {name: keep(weight - self.config.inner_lr * gradients[name]) for name, weight in weights.items()}
        state = {**weights, "present": present}
        if self.batch_norm == "inductive":
            with torch.autocast(x.device.type, enabled=False):
                _, statistics = self._logits(state, x, None)
            state |= {_STATISTICS + name: value for name, value in statistics.items()}
        return state

    def _inner_gradient(
        self, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, present: Tensor, second_order: bool
    ) -> Mapping[str, Tensor]:
        """Return ∇θ L(θ; support set) of each episode, always in full precision: support sets are small."""
        if self.backbone.taped:
            return taped_gradient(self.backbone, x, y, present, weights, second_order)
        with torch.autocast(x.device.type, enabled=False):
            logits, _ = self._logits({**weights, "present": present}, x, None)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(dim=1).sum()
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
        return dict(zip(weights, found, strict=True))

    def _logits(self, state: State, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Return logits (b, n, way) of standardised x (b, n, *x), and the batch-norm statistics that were used."""
        weights = {name.removeprefix(_BACKBONE): v for name, v in state.items() if name.startswith(_BACKBONE)}
        features, used = self.backbone.embed(weights, x, statistics)
        with torch.autocast(x.device.type, enabled=False):
            logits = linear(features.to(x.dtype), state["head.weight"], state["head.bias"])
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf), used


def _cut(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _stack(states: list[State]) -> State:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
