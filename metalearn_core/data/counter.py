"""Counter-based randomness: number n of a stream is a pure function of the stream's key and n, in integers alone.

The mixing function is that of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
Tensors of int64 stand for 64-bit words: multiplication wraps around, and shifts are made logical by a mask.
"""

import hashlib
import json

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def stream_key(*parts: object) -> int:
    """Return the key of the stream that `parts` (JSON values) name, a signed 64-bit integer."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def words(key: Tensor | int, numbers: Tensor) -> Tensor:
    """Return word number `numbers` of the streams `key` (broadcast against it): int64, 64 random bits each."""
    return _mix(key + (numbers + 1) * _GOLDEN)


def below(word: Tensor, bound: Tensor | int) -> Tensor:
    """Return integers in 0 … bound − 1 (bound < 2³¹) from the upper half of each word; its bias is below bound/2³²."""
    return (shift_right(word, 32) * bound) >> 32


def _mix(word: Tensor) -> Tensor:
    word = (word ^ shift_right(word, 30)) * _FIRST
    word = (word ^ shift_right(word, 27)) * _SECOND
    return word ^ shift_right(word, 31)


def shift_right(word: Tensor, bits: int) -> Tensor:
    """Return words shifted to the right by so many bits, zeros coming in."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def subsets(word: Tensor, population: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Return n distinct integers in 0 … population − 1 for each row of words (…, n), in no order (Floyd's algorithm).

    Args:
        word: (…, n) int64 random words.
        population: (…) int64, each at least n, or what is wanted of its row.
        wanted: (…) int64: of each row only the first so many are wanted; what follows them means nothing.
    """
    size = word.shape[-1]
    each: Tensor | int = size if wanted is None else wanted.unsqueeze(-1)
    last = population.unsqueeze(-1) - each + torch.arange(size, device=word.device)
    draw = below(word, last + 1)
    for position in range(1, size):
        drawn_before = (draw[..., :position] == draw[..., position : position + 1]).any(-1)
        draw[..., position] = torch.where(drawn_before, last[..., position], draw[..., position])
    return draw


def shuffled(values: Tensor, word: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Return values (…, n) in the order of their words (…, n); equal words keep their order.

    Where only the first `wanted` (…) of each row are, those stay in front.
    """
    return values.gather(-1, order(word, None if wanted is None else leading(wanted, word.shape[-1])))


def order(word: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return the positions of words (…, n) in the order of the words; those that are not chosen (…, n) come last."""
    return (word if chosen is None else word.masked_fill(~chosen, 2**63 - 1)).argsort(dim=-1, stable=True)


def leading(counts: Tensor, size: int) -> Tensor:
    """Return (…, size) bool: True at the first `counts` (…) positions of each row."""
    return torch.arange(size, device=counts.device) < counts.unsqueeze(-1)
