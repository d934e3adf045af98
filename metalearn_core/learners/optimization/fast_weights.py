"""What learners by gradient share: the state, the queries, masks and ways of weights that an episode has of its own."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from metalearn_core.backbones.contract import Backbone, Statistics
from metalearn_core.backbones.functional import channels_last, linear
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import (
    BACKBONE,
    HEAD,
    REMEMBERED_AT_ONCE,
    STATISTICS,
    Learner,
    LearnerConfig,
    Outcome,
    State,
    own_statistics,
    query_outcome,
    zero_padding,
)
from metalearn_core.learners.embedding import membership
from metalearn_core.learners.optimization.inner_gradient import HEAD_BIAS, HEAD_WEIGHT, taped_gradient
from metalearn_core.learners.optimization.query_gradient import episode_by_episode
from metalearn_core.learners.optimization.support_loss import SupportLoss

EPISODES_AT_ONCE = 8

Weights = Mapping[str, Tensor]


class FastWeightConfig(LearnerConfig):
    """The options of every learner with an inner loop; each sets its own defaults."""

    meta_batch: int = Field(4, ge=1, description="episodes an outer step")
    inner_steps: int = Field(1, ge=1, le=1000, description="inner steps in training")
    eval_steps: int = Field(5, ge=1, le=1000, description="inner steps in evaluation and prediction")
    train_query: int = Field(5, ge=1, description="queries per class of a training episode, where none is asked for")


class FastWeightLearner(Learner):
    """Gives each episode weights of its own, a linear head among them: those that steps on its support set lead to.

    A learner says which state a support set leads to (`fast_state`); all else is here. The fast weights in the state
    have the names of the parameters; the others stay shared. Unless a learner makes its head from the support set, the
    head starts at zero, so that no class is preferred, and is meta-learned.

    When inductive, in training too, queries are normalised by the support set's batch-norm statistics under the last
    fast weights; when transductive they normalise one another.
    """

    config: FastWeightConfig
    backbone_defaults: ClassVar = {"conv4": {"pooling": "stride"}}

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: FastWeightConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        if way is not None:
            self.head = nn.Linear(backbone.feature_size, spec.target_size or way)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that what their inner steps remember fits: small operations cost less together."""
        support, query = (shape.way * count * self.backbone.remembered for count in (shape.shot, shape.query))
        if self.backbone.taped:
            return max(1, min(EPISODES_AT_ONCE, REMEMBERED_AT_ONCE // (self.config.inner_steps * support)))
        if not self.backbone.groups_together:
            return 1
        fast = sum(value.numel() for value in self.shared().values())
        return max(1, REMEMBERED_AT_ONCE // (self.config.inner_steps * (support + fast) + query))

    @property
    def steps(self) -> int:
        """Inner steps, in the mode that the learner is in."""
        return self.config.inner_steps if self.training else self.config.eval_steps

    @abstractmethod
    def fast_state(self, x: Tensor, y: Tensor, present: Tensor, differentiable: bool) -> State:
        """Return the state that the support sets of b episodes lead to.

        Args:
            x: (b, s, *x) standardised support examples.
            y: (b, s) labels, or (b, s, d) targets.
            present: (b, way) which classes have support.
            differentiable: the state has a graph; else none is kept.
        """

    def start(self, x: Tensor, y: Tensor, present: Tensor) -> Weights:
        """Return the fast weights of b episodes before the first step: all shared ones, each (b, …)."""
        del y, present
        return {name: channels_last(value).expand(len(x), *value.shape) for name, value in self.shared().items()}

    def shared(self) -> dict[str, Tensor]:
        """Return the parameters of backbone and head by name, without those that say how a step is made."""
        return {name: value for name, value in self.named_parameters() if name.startswith((BACKBONE, HEAD))}

    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Return the fast weights θ′ of b episodes and, when inductive, the support sets' statistics under them.

        Works under `torch.no_grad` and `torch.inference_mode` too, and then keeps no graph.

        Raises:
            UsageError: `way` is not the one that the head was made for.
        """
        self.check_way(way)
        if support_mask is not None:
            episodes = zip(support_x, support_y, support_mask, strict=True)
            return stacked([self.adapt(x[None, keep], y[None, keep], way=way) for x, y, keep in episodes])
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if support_x.is_inference():
                support_x, support_y = support_x.clone(), support_y.clone()
            x = self.standardise(support_x)
            state = self.fast_state(x, support_y, self._present(support_y, way), differentiable)
        return state if differentiable else {name: value.detach() for name, value in state.items()}

    def check_way(self, way: int) -> None:
        """Raise a UsageError where `way` is not the one that the head was made for."""
        if self.way is not None and way != self.way:
            raise UsageError(
                f"{self.info.name} was trained for {self.way}-way episodes, got {way}-way ones: train it for that way"
            )

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Return logits (b, q, way) of the fast weights; for regression means (b, q, d)."""
        if query_mask is not None and self.batch_norm == "transductive":
            return self._predict_unmasked(state, query_x, query_mask)
        x = self.standardise(zero_padding(query_x, query_mask))
        outputs, _ = self._outputs(state, x, own_statistics(state) or None)
        return torch.where(state["present"].unsqueeze(1), outputs, -torch.inf)

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,): the mean loss over the unmasked queries of each episode."""
        state = self.adapt(episodes.support_x, episodes.support_y, way=episodes.way, support_mask=episodes.support_mask)
        return self.query_outcomes(state, episodes)

    def query_outcomes(self, state: State, episodes: EpisodeBatch) -> Outcome:
        """Return the outcome of adapted episodes, where all that the queries' losses depend on is in the state."""
        if state["present"].device.type != "cpu" or self.backbone.groups_together:  # quickest with all at once
            return query_outcome(self.predict(state, episodes.query_x, episodes.query_mask), episodes)

        def outcome_of(own: State, number: int) -> Outcome:
            episode = episodes[number : number + 1]
            return query_outcome(self.predict(own, episode.query_x, episode.query_mask), episode)

        return episode_by_episode(outcome_of, state)

    def inner_gradient(self, x: Tensor, loss: SupportLoss, second_order: bool) -> Callable[[Weights], Weights]:
        """Return ∇θ L(θ; support set) of each episode, a function of θ; in full precision: support sets are small."""
        if self.backbone.taped:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                tape_of = self.backbone.tapes(x)
            return lambda weights: taped_gradient(tape_of, loss, weights, second_order)

        def gradient(weights: Weights) -> Weights:
            with torch.autocast(x.device.type, enabled=False):
                outputs, _ = self._outputs(weights, x, None)
                slope = loss.gradient(outputs)
                found = torch.autograd.grad(outputs, list(weights.values()), slope, create_graph=second_order)
            return dict(zip(weights, found, strict=True))

        return gradient

    def _state(self, weights: Weights, x: Tensor, present: Tensor, statistics: Statistics | None = None) -> State:
        """Return the state of fast weights; the support's statistics under them are found, where they are not given."""
        state = {**weights, "present": present}
        if self.batch_norm == "inductive":
            if statistics is None:
                with torch.autocast(x.device.type, enabled=False):
                    _, statistics = self._outputs(weights, x, None)
            state |= {STATISTICS + name: value for name, value in statistics.items()}
        return state

    def _present(self, y: Tensor, way: int) -> Tensor:
        if y.is_floating_point():
            return y.new_ones(len(y), y.shape[-1], dtype=torch.bool)
        return membership(y, way, None, self.mean.dtype).amax(dim=1) > 0

    def _predict_unmasked(self, state: State, query_x: Tensor, query_mask: Tensor) -> Tensor:
        """Predict when queries normalise one another, and some are padding: episode by episode, without that."""
        rows = []
        for number, (x, keep) in enumerate(zip(query_x, query_mask, strict=True)):
            own = {name: value[number, None] for name, value in state.items()}
            logits = self.predict(own, x[None, keep])[0]
            rows.append(logits.new_zeros(len(keep), logits.shape[-1]).masked_scatter(keep.unsqueeze(-1), logits))
        return torch.stack(rows)

    def _outputs(self, weights: Weights, x: Tensor, statistics: Statistics | None) -> tuple[Tensor, Statistics]:
        """Return outputs (b, n, way) of standardised x (b, n, *x), and the batch-norm statistics that were used."""
        shared = dict(self.backbone.named_parameters())
        own = {name: weights.get(BACKBONE + name, value) for name, value in shared.items()}
        features, used = self.backbone.embed(own, x, statistics)
        with torch.autocast(x.device.type, enabled=False):
            return linear(features.to(x.dtype), weights[HEAD_WEIGHT], weights[HEAD_BIAS]), used


def stacked(states: list[State]) -> State:
    """Return the states of several episodes as one."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
