import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from metalearn_core.data.shape import LARGEST_SUPPORT, ClassSpan, EpisodeShape, OptionalSpan
from metalearn_core.errors import UsageError

spans = st.one_of(
    st.integers(2, 60), st.tuples(st.integers(2, 20), st.integers(21, 60)).map(lambda ends: f"{ends[0]}-{ends[1]}")
)


@given(way=spans, shot=spans, query=st.integers(1, 20))
def test_a_shape_is_written_as_it_is_read(way: int | str, shot: int | str, query: int) -> None:
    shape = EpisodeShape.of(way, shot, query)
    assert shape.spans == {"way": way, "shot": shot, "query": query}
    assert str(shape) == f"{way}-way {shot}-shot {query}-query"
    assert shape.varied == (isinstance(way, str) or isinstance(shot, str))


def test_a_range_of_one_number_is_that_number() -> None:
    assert EpisodeShape.of("5-5", "1-1", 3) == EpisodeShape(5, 1, 3)
    assert TypeAdapter(ClassSpan).validate_python(" 7 - 7 ") == 7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1, "greater than or equal to 2"),
        ("1-5", "greater than or equal to 2"),
        ("9-5", "end is not below its start"),
        ("five", "a number, or a range"),
        ("-5", "a number, or a range"),
        (True, "a number, or a range"),
        (2.5, "a number, or a range"),
    ],
)
def test_what_is_no_span_of_classes_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ClassSpan).validate_python(value)
    assert TypeAdapter(OptionalSpan).validate_python("0") == 0


@pytest.mark.parametrize(("way", "shot"), [("five", 1), ("9-5", 1), (5, "0-3")])
def test_what_is_no_shape_is_refused(way: int | str, shot: int | str) -> None:
    with pytest.raises(UsageError):
        EpisodeShape.of(way, shot, 1)


def test_a_support_set_has_room_for_what_an_episode_may_have() -> None:
    assert EpisodeShape.of("5-20", 3, 1).support_size == 60
    assert EpisodeShape.of("5-20", "1-10", 1).support_size == 200
    assert EpisodeShape.of("5-50", "1-100", 1).support_size == LARGEST_SUPPORT
    assert EpisodeShape.of("5-50", "20-100", 1).support_size == 1000
