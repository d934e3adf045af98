"""SNAIL: an episode is a sequence, read by causal convolutions and causal attention; the query is its last element."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone
from metalearn_core.backbones.options import split_numbers
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner, membership

QUERY_GAIN = 2.0  # of initial queries and keys; attention that starts nearly even takes many times the episodes
_Size = Annotated[int, Field(ge=1, le=65536)]
ThreeSizes = Annotated[tuple[_Size, _Size, _Size], BeforeValidator(split_numbers)]


class SnailConfig(LearnerConfig):
    """The options of snail; the sizes are the paper's for Omniglot."""

    meta_batch: int = Field(2, ge=1, description="episodes an outer step")
    shot: int = Field(1, ge=1, description="examples per class that it is built for; episodes have exactly so many")
    filters: int = Field(128, ge=1, le=65536, description="D, channels that a dense block adds")
    keys: ThreeSizes = Field((64, 256, 512), description="K of the three attention blocks")
    values: ThreeSizes = Field((32, 128, 256), description="V of the three attention blocks")
    train_query: int = Field(5, ge=1, description="queries per class of a training episode, where none is asked for")


class _Layer(nn.Module, ABC):
    """A causal layer: an element's output depends on itself and on what came before it.

    So the support set is read once, and what the layer must remember of it for the element that follows is kept: each
    query is that element, in a sequence of its own.
    """

    @abstractmethod
    def read_support(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return outputs (b, s, o) of the support sets x (b, s, i), and what is remembered."""

    @abstractmethod
    def read_query(self, x: Tensor, memory: State) -> Tensor:
        """Return outputs (b, q, o) of queries x (b, q, i), each as element s + 1."""


class _DenseBlock(_Layer):
    """DenseBlock(R, D): g = tanh(a) ⊙ σ(b), where (a, b)_t = W x_t + W′ x_{t − R} + c; the output is (x, g)."""

    def __init__(self, inputs: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.present = nn.Linear(inputs, 2 * filters)
        self.past = nn.Linear(inputs, 2 * filters, bias=False)

    def read_support(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        size = x.shape[1]
        past = F.pad(self.past(x), (0, 0, self.dilation, 0))
        return self._gated(x, past[:, :size]), {"past": past[:, size : size + 1]}

    def read_query(self, x: Tensor, memory: State) -> Tensor:
        return self._gated(x, memory["past"])

    def _gated(self, x: Tensor, past: Tensor) -> Tensor:
        activation, gate = (self.present(x) + past).chunk(2, dim=-1)
        return torch.cat([x, activation.tanh() * gate.sigmoid()], dim=-1)


class _AttentionBlock(_Layer):
    """AttentionBlock(K, V): softmax(q kᵀ / √K) v over the elements so far; the output is (x, what was read).

    Keys start as the queries do, nearly isometric: at first an element looks at those that are like it.
    """

    def __init__(self, inputs: int, keys: int, values: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(inputs, keys), nn.Linear(inputs, keys), nn.Linear(inputs, values)
        nn.init.orthogonal_(self.query.weight, gain=QUERY_GAIN)
        self.key.load_state_dict(self.query.state_dict())

    def read_support(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        keys, values = self.key(x), self.value(x)
        read = F.scaled_dot_product_attention(self.query(x), keys, values, is_causal=True)
        return torch.cat([x, read], dim=-1), {"keys": keys, "values": values}

    def read_query(self, x: Tensor, memory: State) -> Tensor:
        query = self.query(x)
        own = (query * self.key(x)).sum(dim=-1, keepdim=True)
        scores = torch.cat([query @ memory["keys"].mT, own], dim=-1) / math.sqrt(query.shape[-1])
        share = scores.softmax(dim=-1)
        return torch.cat([x, share[..., :-1] @ memory["values"] + share[..., -1:] * self.value(x)], dim=-1)


class Snail(EmbeddingLearner):
    """A simple neural attentive meta-learner (Mishra, Rohaninejad, Chen, Abbeel 2018), on the backbone's features.

    The sequence is (f(x_1), y_1), …, (f(x_s), y_s), (f(x*), 0), with labels in one-hot form and T = s + 1. The network
    is the paper's for Omniglot: AttentionBlock(64, 32), TCBlock(T, 128), AttentionBlock(256, 128), TCBlock(T, 128),
    AttentionBlock(512, 256), and a linear layer that gives the logits of the last element. TCBlock(T, D) is a
    DenseBlock(R, D) for each R = 1, 2, 4, … below T: together they see the whole sequence. (The paper's pseudocode has
    R = 2, 4, 8, …, its loop counting from 1; with R = 1 an element sees the one just before it too.)

    Way and shot are fixed by the number of one-hot labels and of dilations: taps that training never filled would read
    with untrained weights. The order of the support set matters.
    """

    info = LearnerInfo(
        name="snail",
        family="model",
        paper="Mishra, Rohaninejad, Chen, Abbeel 2018, A Simple Neural Attentive Meta-Learner",
        fixed_way=True,
        order_invariant=False,
        variable_shape=False,
    )
    Config: ClassVar[type[LearnerConfig]] = SnailConfig
    config: SnailConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: SnailConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        assert way is not None
        layers: list[_Layer] = []
        size = backbone.feature_size + way
        dilations = [2**power for power in range((way * config.shot).bit_length())]
        for number, (keys, values) in enumerate(zip(config.keys, config.values, strict=True)):
            for dilation in dilations if number else ():
                layers.append(_DenseBlock(size, dilation, config.filters))
                size += config.filters
            layers.append(_AttentionBlock(size, keys, values))
            size += values
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(size, way)

    @classmethod
    def train_shape(cls, shape: EpisodeShape, config: LearnerConfig) -> EpisodeShape:
        """Return the way and shot of evaluation, with the recipe's number of queries.

        Raises:
            UsageError: the shot is not the one that the network is built for.
        """
        assert isinstance(config, SnailConfig)
        if shape.shot != config.shot:
            raise UsageError(
                f"snail.shot: snail is built for one shot, here {config.shot}, got episodes of {shape.shot}: "
                f"set snail.shot={shape.shot} when it is trained"
            )
        return super().train_shape(shape, config)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that the small operations on sequences cost less together."""
        return max(4, super().episodes_at_once(shape))

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return what each layer remembers of the support features (b, s, d), and which classes are present (b, way).

        Raises:
            UsageError: another way or number of examples than the network is built for, or a mask.
        """
        self._check(way, support.shape[1], support_mask)
        members = membership(support_y, way, None, support.dtype)
        state = {"present": members.sum(dim=1) > 0}
        with torch.autocast(support.device.type, enabled=False):
            x = torch.cat([support, members], dim=-1)
            for number, layer in enumerate(self._layers()):
                x, memory = layer.read_support(x)
                state |= {f"{number}.{name}": value for name, value in memory.items()}
        return state

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return logits (b, q, way) of query features (b, q, d), each at the end of a sequence of its own."""
        assert self.way is not None
        memories: list[dict[str, Tensor]] = [{} for _ in self.layers]
        for name, value in state.items():
            number, _, part = name.partition(".")
            if part:
                memories[int(number)][part] = value
        with torch.autocast(query.device.type, enabled=False):
            x = torch.cat([query, query.new_zeros(*query.shape[:2], self.way)], dim=-1)
            for layer, memory in zip(self._layers(), memories, strict=True):
                x = layer.read_query(x, memory)
            logits = self.output(x)
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf)

    def _layers(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

    def _check(self, way: int, size: int, mask: Tensor | None) -> None:
        assert self.way is not None
        if way != self.way:
            found = f"{way}-way episodes"
        elif size != way * self.config.shot:
            found = f"support sets of {size} examples"
        elif mask is not None:
            found = "episodes of varying shape (a support mask)"
        else:
            return
        raise UsageError(
            f"snail was trained for {self.way}-way {self.config.shot}-shot episodes, got {found}: train it for those "
            "(its way, and snail.shot), or take a learner of variable shape"
        )
