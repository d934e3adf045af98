"""VERSA: a network reads each class's support examples and gives a distribution over that class's linear classifier."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.counter import stream_key, words
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner, class_means, membership

FIRST_LOG_VARIANCE = -4.0  # of every weight: with the noise of a whole unit, features are learned late


class VersaConfig(LearnerConfig):
    """The options of versa."""

    samples: int = Field(10, ge=2, le=65536, description="L, draws of the weights that a prediction averages over")
    hidden: int = Field(256, ge=1, le=65536, description="units of the two hidden layers of the amortisation network")
    train_way: int = Field(20, ge=2, description="classes of a training episode, where none is asked for")
    train_query: int = Field(5, ge=1, description="queries per class of a training episode, where none is asked for")


class Versa(EmbeddingLearner):
    """VERSA for few-shot classification (Gordon, Bronskill, Bauer, Nowozin, Turner 2019), with h the backbone.

    The amortisation network maps the pooled features h̃_c of class c's support set to the mean and the log-variance of
    that class's weights ψ_c = (w_c, b_c): q(ψ | D) = Π_c N(ψ_c; μ(h̃_c), diag σ²(h̃_c)) (section 3). Each class is read
    without the others, so an episode may have any number of them. The network of the mean has h̃_c added to its w_c, so
    that at first a query belongs to the class whose examples it is like.

    A query's probabilities are (1/L) Σ_l softmax(h(x*)ᵀ w⁽ˡ⁾ + b⁽ˡ⁾), and training minimises minus the logarithm of its
    class's (section 2).

    No number is drawn at random. Given a query, its logits are independent and normal, with mean h·μ_w + μ_b and
    variance h²·σ²_w + σ²_b: drawing those gives the same distribution as drawing the weights (the local
    reparameterisation of Kingma, Salimans, Welling 2015), and takes one number a class. The L numbers of a class are
    always the same quantiles of the standard normal, so that none is favoured, in an order of its own (`normal_draws`);
    as L grows, the average goes to the expectation. Classes take these orders by the rank of their μ_b: renaming the
    classes renames the columns, and nothing else.
    """

    info = LearnerInfo(
        name="versa",
        family="model",
        paper="Gordon, Bronskill, Bauer, Nowozin, Turner 2019, Meta-Learning Probabilistic Inference for Prediction",
        fixed_way=False,
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = VersaConfig
    backbone_defaults: ClassVar = {"conv4": {"pooling": "max", "gain": 3**-0.5}}
    config: VersaConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: VersaConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        size = backbone.feature_size
        self.amortisation = nn.Sequential(
            nn.Linear(size, config.hidden),
            nn.ELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.ELU(),
            nn.Linear(config.hidden, 2 * (size + 1)),
        )
        last = self.amortisation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias[size + 1 :], FIRST_LOG_VARIANCE)

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return the distribution of the weights, from support features (b, s, d).

        Returns:
            mean and variance (b, way, d + 1), the bias last; draws (b, L, way); and which classes are present (b, way).
        """
        members = membership(support_y, way, support_mask, support.dtype)
        with torch.autocast(support.device.type, enabled=False):
            pooled, present = class_means(support, members)
            mean, log_variance = self.amortisation(pooled).chunk(2, dim=-1)
            mean = mean + F.pad(pooled, (0, 1))
        rank = mean[..., -1].masked_fill(~present, torch.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        draws = normal_draws(self.config.samples, way, support.device).to(support.dtype)
        draws = draws[:, rank].transpose(0, 1)
        return {"mean": mean, "variance": log_variance.exp(), "draws": draws, "present": present}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return log-probabilities (b, q, way) of query features (b, q, d): logits that are normalised already."""
        with torch.autocast(query.device.type, enabled=False):
            mean, variance = (
                values @ weights[..., :-1].mT + weights[..., -1].unsqueeze(1)
                for values, weights in ((query, state["mean"]), (query.square(), state["variance"]))
            )
            logits = mean.unsqueeze(1) + variance.sqrt().unsqueeze(1) * state["draws"].unsqueeze(2)
            present = state["present"][:, None, None]
            likelihood = logits.masked_fill(~present, -torch.inf).log_softmax(dim=-1).masked_fill(~present, 0.0)
            average = likelihood.logsumexp(dim=1) - math.log(self.config.samples)
        return torch.where(present.squeeze(1), average, -torch.inf)


def normal_draws(samples: int, way: int, device: torch.device) -> Tensor:
    """Return draws (samples, way) from the standard normal in fp64: one Latin hypercube, always the same.

    Every column has the normal's quantiles at (l + ½)/samples, scaled to a variance of 1, in an order that depends on
    the column's number and on `samples` alone.
    """
    numbers = torch.arange(way * samples, device=device).view(way, samples)
    order = words(stream_key("versa"), numbers).argsort(dim=1, stable=True)
    quantiles = torch.special.ndtri((torch.arange(samples, dtype=torch.float64, device=device) + 0.5) / samples)
    draws: Tensor = (quantiles / quantiles.square().mean().sqrt())[order].mT
    return draws
