"""The shape of episodes: what is asked of a dataset and of a learner, known without any tensor."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from metalearn_core.errors import UsageError

LARGEST_SUPPORT = 500
"""Examples in a support set whose shot varies, at most (Triantafillou 2020, appendix A)."""
_SPAN = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")

Span = int | str
"""A number of classes or examples: 5, or where it varies from episode to episode a range, as "5-20"."""


def _span(least: int) -> BeforeValidator:
    """Return what brings a span to its one form: a number, or "least-most" with least < most."""

    def canonical(value: Any) -> Span:
        whole = isinstance(value, int) and not isinstance(value, bool)
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if not whole and found is None:
            raise PydanticCustomError("span", "Input should be a number, or a range as 5-20")
        ends = [int(end) for end in found.groups() if end] if found else [int(value)]
        if ends[0] < least:
            limit = {"ge": least}
            raise PydanticCustomError("span", "Input should be greater than or equal to {ge}", limit)
        if ends[0] > ends[-1]:
            raise PydanticCustomError("span", "Input should be a range whose end is not below its start, as 5-20")
        return ends[0] if ends[0] == ends[-1] else f"{ends[0]}-{ends[-1]}"

    return BeforeValidator(canonical)


ClassSpan = Annotated[Span, _span(2)]
"""Of classes, where examples belong to classes."""
TaskSpan = Annotated[Span, _span(1)]
"""Of examples; of classes too where 1 stands for regression."""
OptionalSpan = Annotated[Span, _span(0)]
"""The same, or 0: not asked for."""


@dataclass(frozen=True)
class EpisodeShape:
    """An N-way K-shot problem: classes per episode, support examples per class, query examples per class.

    Way and shot are the same in every episode, or vary from episode to episode, and shot then from class to class
    too, as in Meta-Dataset (Triantafillou et al. 2020, section 3.2); `data.varied` has the rules.

    Attributes:
        way: classes per episode; where it varies, the most. Regression has 1.
        shot: support examples per class; where it varies, the most.
        query: query examples per class; where shot varies, the most.
        min_way: the fewest classes; None: way does not vary.
        min_shot: the fewest support examples per class; None: shot does not vary, and every class has as many.

    Raises:
        UsageError: a number is below 1, or the least above the most.
    """

    way: int
    shot: int
    query: int
    min_way: int | None = None
    min_shot: int | None = None

    def __post_init__(self) -> None:
        for name in ("way", "shot", "query"):
            least, most = getattr(self, f"min_{name}", None), getattr(self, name)
            if most < 1 or (least is not None and least < 1):
                raise UsageError(f"{name} must be at least 1, got {most if least is None else least}")
            if least is not None and least > most:
                raise UsageError(f"{name}: the least must not be above the most, got {least} and {most}")
            if least == most:
                object.__setattr__(self, f"min_{name}", None)

    @classmethod
    def of(cls, way: Span, shot: Span, query: int) -> "EpisodeShape":
        """Return the shape that spans describe, as `EpisodeShape.of("5-20", "1-10", 10)`.

        Raises:
            UsageError: a span is no number and no range, or out of range.
        """
        (min_way, most_way), (min_shot, most_shot) = _ends("way", way), _ends("shot", shot)
        return cls(most_way, most_shot, query, min_way, min_shot)

    @property
    def spans(self) -> dict[str, Span]:
        """Way, shot and query as they are written: what `of` takes."""
        return {"way": _text(self.min_way, self.way), "shot": _text(self.min_shot, self.shot), "query": self.query}

    @property
    def varied(self) -> bool:
        """Whether way or shot varies."""
        return self.min_way is not None or self.min_shot is not None

    @property
    def least_way(self) -> int:
        """The classes that a dataset must have."""
        return self.way if self.min_way is None else self.min_way

    @property
    def least_examples(self) -> int:
        """The examples that each class must have: where shot varies, queries leave the support set its least."""
        return self.shot + self.query if self.min_shot is None else self.min_shot + 1

    @property
    def support_size(self) -> int:
        """The support examples of an episode, at most."""
        if self.min_shot is None:
            return self.way * self.shot
        return max(min(LARGEST_SUPPORT, self.way * self.shot), self.way * self.min_shot)

    def require_classes(self) -> None:
        """Raise a UsageError where way is below 2: a single class leaves nothing to tell apart."""
        if self.least_way < 2:
            raise UsageError(f"way must be at least 2, got {self.least_way}")

    def __str__(self) -> str:
        return "{way}-way {shot}-shot {query}-query".format(**self.spans)


def _ends(name: str, span: Span) -> tuple[int | None, int]:
    """Return the least (None: it does not vary) and the most of a span."""
    if isinstance(span, int):
        return None, span
    found = _SPAN.fullmatch(span)
    if found is None:
        raise UsageError(f"{name}: expected a number, or a range as 5-20, got {span!r}")
    least, most = found.groups()
    return (None, int(least)) if most is None else (int(least), int(most))


def _text(least: int | None, most: int) -> Span:
    return most if least is None else f"{least}-{most}"
