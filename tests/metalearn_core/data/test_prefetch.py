"""Batches drawn ahead are those that would have been drawn."""

import threading

import pytest

from metalearn_core.data.prefetch import Prefetch


def test_batches_are_those_asked_for_whatever_was_drawn_ahead():
    asked = [(0, 4), (4, 4), (8, 4), (20, 2), (22, 2), (0, 1)]
    with Prefetch(lambda first, count: list(range(first, first + count))) as batches:
        assert [batches(*each) for each in asked] == [list(range(f, f + c)) for f, c in asked]


def test_the_next_batch_is_drawn_in_another_thread_while_this_one_is_used():
    drawn = {}
    ready = threading.Event()

    def draw(first, count):
        drawn[first] = threading.current_thread()
        if first:
            ready.set()
        return first

    with Prefetch(draw) as batches:
        assert batches(0, 3) == 0
        assert ready.wait(5)
        assert drawn[0] is threading.main_thread()
        assert drawn[3] is not threading.main_thread()
        assert batches(3, 3) == 3


def test_what_comes_next_may_be_said():
    drawn = []
    with Prefetch(lambda first, count: drawn.append((first, count))) as batches:
        batches(0, 3, (6, 2))
        batches(6, 2, (12, 3))
        batches(12, 3, (18, 2))
    assert drawn[:3] == [(0, 3), (6, 2), (12, 3)]
    assert len(drawn) <= 4


def test_a_failure_ahead_is_told_when_that_batch_is_asked_for():
    def draw(first, count):
        if first == 2:
            raise OSError("gone")
        return first

    with Prefetch(draw) as batches:
        assert batches(0, 2) == 0
        with pytest.raises(OSError, match="gone"):
            batches(2, 2)


def test_without_its_block_nothing_is_drawn_ahead():
    drawn = []
    batches = Prefetch(lambda first, count: drawn.append(first))
    batches(0, 2)
    assert drawn == [0]
