"""MAML++: MAML with step sizes and batch norms that are learnt for each step, and a loss after each step at first."""

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import BACKBONE, LearnerConfig, LearnerInfo, Outcome, State
from metalearn_core.learners.optimization.fast_weights import Weights
from metalearn_core.learners.optimization.inner_loop import InnerLoopConfig, InnerLoopLearner

STAGES = 10


class MAMLPlusPlusConfig(InnerLoopConfig):
    """The options of mamlpp."""

    inner_lr: float = Field(0.1, gt=0, description="what each step size starts from")
    inner_steps: int = Field(5, ge=1, le=1000, description="inner steps in training")
    multi_step_share: float = Field(
        0.15, ge=0, le=1, description="share of the training budget in which the loss after each step counts, ever less"
    )
    first_order_share: float = Field(
        0.0, ge=0, le=1, description="share of the training budget at the start without second derivatives"
    )


class MAMLPlusPlus(InnerLoopLearner):
    """MAML++ (Antoniou, Edwards, Storkey 2019), with a linear head on the backbone.

    Section 4: a step size for each layer and step (LSLR); scale and shift of each batch norm for each step, which the
    inner loop leaves alone (BNWB), here the backbone's own plus an offset of the step; the outer loss
    Σᵢ vᵢ L(θᵢ; queries) over the steps i, whose importances v go from equal to the last step alone (MSL); first order
    at the start, then second (DA); the cosine schedule (CA) is the default of every learner. Statistics of batch norms
    are those of each step's own batch here, so that per-step running averages (BNRS) have no place.
    """

    info = LearnerInfo(
        name="mamlpp",
        family="optimization",
        paper="Antoniou, Edwards, Storkey 2019, How to Train Your MAML",
        fixed_way=True,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = MAMLPlusPlusConfig
    config: MAMLPlusPlusConfig

    def __init__(
        self, spec: DatasetSpec, backbone: Backbone, config: MAMLPlusPlusConfig, way: int | None = None
    ) -> None:
        super().__init__(spec, backbone, config, way)
        shared = self.shared()
        norms = {BACKBONE + name.rpartition(".")[0] for name in backbone.running_statistics()}
        self._norms = [name for name in shared if name.rpartition(".")[0] in norms]
        self._moved = [name for name in shared if name not in self._norms]
        dtype = next(iter(shared.values())).dtype
        self.rates = nn.Parameter(torch.full((config.inner_steps, len(self._moved)), config.inner_lr, dtype=dtype))
        self.offsets = nn.ParameterList(
            shared[name].new_zeros(config.inner_steps + 1, *shared[name].shape) for name in self._norms
        )

    @property
    def first_order(self) -> bool:
        """At the start of the training, so long as the option says, or all along."""
        return super().first_order or (self.training and self.progress < self.config.first_order_share)

    def start(self, x: Tensor, y: Tensor, present: Tensor) -> Weights:
        """Return the shared weights, with the batch norms of the first step."""
        return {**super().start(x, y, present), **self._norms_at(0, len(x))}

    def unmoved(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Return the shared weights, with the batch norms of the last step, which are the same for any support set."""
        weights = super().unmoved(support_x, support_y, way=way, support_mask=support_mask)
        return {**weights, **self._norms_at(min(self.steps, len(self.rates)), 1)}

    def step(self, weights: Weights, gradients: Weights, number: int) -> Weights:
        """θ ← θ − α ∇L, α that of the layer and the step; steps beyond those of training are as the last one."""
        rates = self.rates[min(number, len(self.rates) - 1)]
        moved = {name: weights[name] - rate * gradients[name] for name, rate in zip(self._moved, rates, strict=True)}
        episodes = len(next(iter(weights.values())))
        return {**weights, **moved, **self._norms_at(min(number + 1, len(self.rates)), episodes)}

    def train_episodes(self, episodes: EpisodeBatch) -> Outcome:
        """Return the outer losses (b,): at first a weighted sum over the inner steps, then the last one alone."""
        importances = self.importances()
        if importances is None:
            return super().train_episodes(episodes)
        self.check_way(episodes.way)
        if episodes.support_mask is not None:
            return self._each_without_padding(episodes, episodes.support_mask)
        x = self.standardise(episodes.support_x)
        present = self._present(episodes.support_y, episodes.way)
        outcomes = [
            self.query_outcomes(self._state(weights, x, present), episodes)
            for weights in self.trajectory(x, episodes.support_y, present, differentiable=True)
        ]
        losses = [value * outcome.losses for value, outcome in zip(importances, outcomes, strict=True)]
        return Outcome(torch.stack(losses).sum(dim=0), outcomes[-1].accuracies)

    def _each_without_padding(self, episodes: EpisodeBatch, mask: Tensor) -> Outcome:
        outcomes = []
        for number, keep in enumerate(mask):
            one = episodes[number : number + 1]
            support_x, support_y = one.support_x[:, keep], one.support_y[:, keep]
            outcomes.append(
                self.train_episodes(replace(one, support_x=support_x, support_y=support_y, support_mask=None))
            )
        losses, accuracies = ([getattr(one, name) for one in outcomes] for name in ("losses", "accuracies"))
        return Outcome(torch.cat(losses), torch.cat(accuracies))

    def importances(self) -> list[float] | None:
        """Return v, the share of each step in the outer loss, which sum to one; None where the last one is all.

        All are 1/N at the start; those before the last fall to zero in equal stages, and the last takes what they lose.
        """
        share, steps = self.config.multi_step_share, self.config.inner_steps
        if not self.training or self.progress >= share or steps == 1:
            return None
        passed = int(STAGES * self.progress / share) / STAGES
        early = (1 - passed) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def stage(self) -> Hashable:
        """Return the order of the derivatives, and the importances."""
        return self.first_order, *(self.importances() or ())

    def _norms_at(self, step: int, episodes: int) -> dict[str, Tensor]:
        shared = self.shared()
        return {
            name: (shared[name] + offset[step]).expand(episodes, -1)
            for name, offset in zip(self._norms, self.offsets, strict=True)
        }
