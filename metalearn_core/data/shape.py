"""The shape of episodes: what is asked of a dataset and of a learner, known without any tensor."""

from dataclasses import dataclass

from metalearn_core.errors import UsageError


@dataclass(frozen=True)
class EpisodeShape:
    """An N-way K-shot problem: classes an episode, support examples a class, query examples a class.

    Raises:
        UsageError: way is below 2, or shot or query below 1.
    """

    way: int
    shot: int
    query: int

    def __post_init__(self) -> None:
        for name, least in (("way", 2), ("shot", 1), ("query", 1)):
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot {self.query}-query"
