"""MANN: an LSTM writes the support set into an external memory, example by example, and reads it for each query."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State
from metalearn_core.learners.embedding import EmbeddingLearner, membership

SMALLEST_NORM = 1e-6


class MANNConfig(LearnerConfig):
    """The options of mann; the sizes of memory and controller are the paper's."""

    meta_batch: int = Field(2, ge=1, description="episodes an outer step")
    slots: int = Field(128, ge=1, le=65536, description="N, rows of the memory")
    slot_size: int = Field(40, ge=1, le=65536, description="M, numbers of a row")
    heads: int = Field(4, ge=1, le=64, description="reads, and writes, of a step; at most as many as slots")
    controller: int = Field(200, ge=1, le=65536, description="units of the LSTM")
    usage_decay: float = Field(0.95, ge=0, le=1, description="γ, what is left of a slot's usage after a step")
    key_strength: float = Field(10.0, gt=0, description="β at the start, the sharpness of reading; it is learned")
    label_offset: int = Field(0, ge=0, le=1, description="steps from an example to its label, in the paper 1")
    train_query: int = Field(5, ge=1, description="queries per class of a training episode, where none is asked for")


@dataclass(frozen=True)
class _Memory:
    """What a sequence left: rows M (b, n, m), usage w^u (b, n), reads w^r (b, heads, n); the LSTM's h and c (b, h)."""

    rows: Tensor
    usage: Tensor
    reads: Tensor
    hidden: Tensor
    cell: Tensor


class MANN(EmbeddingLearner):
    """Memory-augmented neural network (Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016), on backbone features.

    A step, with controller input (f(x_t), label, r_{t−1}) and its output h_t (section 3, with the access of LRUA):
        keys           k_t = tanh(W h_t), one a head
        write weights  w^w_t = σ(α) w^r_{t−1} + (1 − σ(α)) w^lu_{t−1}
        write          M_t(i) = M_{t−1}(i) + w^w_t(i) k_t, the least used rows set to zero before
        read weights   w^r_t(i) ∝ exp(β K(k_t, M_t(i))), K being the cosine
        read           r_t = Σ_i w^r_t(i) M_t(i)
        usage          w^u_t = γ w^u_{t−1} + w^r_t + w^w_t
    w^lu is 1 at the least used row by w^u; of several heads the j-th takes the j-th least used. The strength β is that
    of neural Turing machines (Graves et al. 2014), without which 128 rows drown what is read.

    In the paper a label comes a step after its example, with the next one, since every step is a prediction. Here only
    queries are predicted, and a label may come with its example: (x_1, y_1), …, (x_s, y_s), which is learned within
    minutes. With `label_offset=1` the sequence is the paper's, (x_1, ∅), (x_2, y_1), …, (x_s, y_{s−1}), and one more
    step, (∅, y_s), that writes the last label. Then each query (x*, ∅) is a step that reads and does not write, from
    the same memory, after the same r_s: queries do not know of one another.
    """

    info = LearnerInfo(
        name="mann",
        family="memory",
        paper="Santoro et al. 2016, Meta-Learning with Memory-Augmented Neural Networks",
        fixed_way=True,
        order_invariant=False,
    )
    Config: ClassVar[type[LearnerConfig]] = MANNConfig
    config: MANNConfig

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: MANNConfig, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        assert way is not None
        if config.heads > config.slots:
            raise UsageError(f"mann.heads: got {config.heads}, more than the {config.slots} slots (mann.slots)")
        read = config.heads * config.slot_size
        self.controller = nn.LSTMCell(backbone.feature_size + way + read, config.controller)
        self.keys = nn.Linear(config.controller, read)
        self.write_gate = nn.Parameter(torch.zeros(config.heads, 1))
        self.log_strength = nn.Parameter(torch.full((config.heads, 1), config.key_strength).log())
        self.output = nn.Linear(config.controller + read, way)

    def episodes_at_once(self, shape: EpisodeShape) -> int:
        """Return so many that the small operations of a step cost less together."""
        return max(4, super().episodes_at_once(shape))

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Write support features (b, s, d), and return what `_Memory` says, and which classes are present (b, way).

        Raises:
            UsageError: `way` is not the one that the network is built for.
        """
        if way != self.way:
            raise UsageError(f"mann was trained for {self.way}-way episodes, got {way}-way ones: train it for that way")
        labels = membership(support_y, way, support_mask, support.dtype)
        with torch.autocast(support.device.type, enabled=False):
            memory = self._written(support, labels, support_mask)
        return {**vars(memory), "present": labels.sum(dim=1) > 0}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return logits (b, q, way) of query features (b, q, d), each from the memory as the support set left it."""
        with torch.autocast(query.device.type, enabled=False):
            b, q, _ = query.shape
            last = (state["reads"] @ state["rows"]).flatten(1).unsqueeze(1).expand(-1, q, -1)
            x = torch.cat([F.pad(query, (0, state["present"].shape[1])), last], dim=-1).flatten(0, 1)
            before = tuple(state[name].repeat_interleave(q, dim=0) for name in ("hidden", "cell"))
            hidden = self.controller(x, before)[0].view(b, q, -1)
            keys = self._keys(hidden).flatten(1, 2)  # (b, q · heads, m)
            read = self._read_weights(keys, state["rows"], q) @ state["rows"]
            logits = self.output(torch.cat([hidden, read.view(b, q, -1)], dim=-1))
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf)

    def _written(self, features: Tensor, labels: Tensor, mask: Tensor | None) -> _Memory:
        """Return the memory after the sequence of features (b, s, d) with one-hot labels (b, s, way)."""
        b, size, _ = features.shape
        length = None
        if mask is not None:  # what is masked out goes to the end, where steps change nothing
            order = (~mask).long().argsort(dim=1, stable=True).unsqueeze(-1)
            features = torch.where(mask.unsqueeze(-1), features, 0.0).gather(1, order.expand_as(features))
            labels, length = labels.gather(1, order.expand_as(labels)), mask.sum(dim=1)
        offset = self.config.label_offset
        sequence = torch.cat([F.pad(features, (0, 0, 0, offset)), F.pad(labels, (0, 0, offset, 0))], dim=-1)
        config = self.config
        memory = _Memory(
            rows=features.new_zeros(b, config.slots, config.slot_size),
            usage=features.new_zeros(b, config.slots),
            reads=features.new_zeros(b, config.heads, config.slots),
            hidden=features.new_zeros(b, config.controller),
            cell=features.new_zeros(b, config.controller),
        )
        for number in range(size + offset):
            after = self._step(memory, sequence[:, number])
            memory = after if length is None else _where(number < length + offset, after, memory)
        return memory

    def _step(self, memory: _Memory, x: Tensor) -> _Memory:
        """Return the memory after an example and a label x (b, d + way)."""
        last = (memory.reads @ memory.rows).flatten(1)
        hidden, cell = self.controller(torch.cat([x, last], dim=-1), (memory.hidden, memory.cell))
        keys = self._keys(hidden.unsqueeze(1)).squeeze(1)
        least = memory.usage.argsort(dim=1, stable=True)[:, : self.config.heads]
        least_used = F.one_hot(least, self.config.slots).to(x.dtype)
        gate = self.write_gate.sigmoid()
        writes = gate * memory.reads + (1 - gate) * least_used
        rows = memory.rows * (1 - least_used.sum(dim=1)).unsqueeze(-1) + writes.mT @ keys
        reads = self._read_weights(keys, rows, 1)
        usage = self.config.usage_decay * memory.usage + reads.sum(dim=1) + writes.sum(dim=1)
        return _Memory(rows, usage, reads, hidden, cell)

    def _keys(self, hidden: Tensor) -> Tensor:
        """Return keys (b, n, heads, m) of the controller's outputs (b, n, h)."""
        keys: Tensor = self.keys(hidden).tanh()
        return keys.view(*keys.shape[:2], self.config.heads, self.config.slot_size)

    def _read_weights(self, keys: Tensor, rows: Tensor, repeats: int) -> Tensor:
        """Return w^r (b, n · heads, slots) of keys (b, n · heads, m) in rows (b, slots, m), n = repeats."""
        cosine = _unit(keys) @ _unit(rows).mT
        strength: Tensor = self.log_strength.exp().repeat(repeats, 1)
        return (strength * cosine).softmax(dim=-1)


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; those next to zero stay so, and have a finite gradient."""
    return vectors / (vectors.square().sum(dim=-1, keepdim=True) + SMALLEST_NORM).sqrt()


def _where(chosen: Tensor, one: _Memory, other: _Memory) -> _Memory:
    """Return for each episode (b,) the one memory where chosen, else the other."""
    pairs = ((vars(one)[name], vars(other)[name]) for name in vars(one))
    return _Memory(*(torch.where(chosen.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs))
