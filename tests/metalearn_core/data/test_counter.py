import torch
from hypothesis import given
from hypothesis import strategies as st

from metalearn_core.data.counter import below, shuffled, stream_key, subsets, words

MASK = 2**64 - 1


def reference_word(key: int, number: int) -> int:
    """SplitMix64 as published, in Python's unbounded integers."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_words_are_those_of_splitmix64(key: int, number: int) -> None:
    word = int(words(key, torch.tensor(number)))
    assert word & MASK == reference_word(key & MASK, number)


def test_published_first_word_of_seed_zero() -> None:
    assert int(words(0, torch.tensor(0))) & MASK == 0xE220A8397B1DCDAF


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_below_stays_below(bound: int, word: int) -> None:
    assert 0 <= int(below(torch.tensor(word), bound)) < bound
    assert 0 <= int(below(torch.tensor(-word), bound)) < bound


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 1000))
def test_subsets_are_distinct_and_in_range(size: int, more: int, key: int) -> None:
    chosen = subsets(words(key, torch.arange(4 * size)).view(4, size), torch.full((4,), size + more))
    assert all(len(set(row)) == size for row in chosen.tolist())
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < size + more


def test_every_subset_is_equally_likely() -> None:
    draws = 60_000
    chosen = subsets(words(3, torch.arange(2 * draws)).view(draws, 2), torch.full((draws,), 5)).sort(-1).values
    counts = torch.bincount(chosen[:, 0] * 5 + chosen[:, 1])
    counts = counts[counts > 0].double()
    assert len(counts) == 10
    assert float(((counts - draws / 10) ** 2 / (draws / 10)).sum()) < 27.9  # chi-square, 9 degrees, p = 0.001


def test_equal_words_keep_their_order() -> None:
    assert shuffled(torch.tensor([5, 6, 7]), torch.tensor([1, 0, 1])).tolist() == [6, 5, 7]


def test_stream_keys_differ_with_every_part() -> None:
    keys = {stream_key("a", 1, None), stream_key("a", 1, "x"), stream_key("a", 2, None), stream_key("b", 1, None)}
    assert len(keys) == 4
