"""The rules that an episode dataset is judged by, as limits on its statistics tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import Manifest, Split

LEAST_SPREAD = 8
LARGEST_DISTANCE = 1000.0
LARGEST_IMBALANCE = 10

Table = Literal["classes", "splits", "dataset"]


@dataclass(frozen=True)
class Rule:
    """A limit on a column of a statistics table.

    Attributes:
        name: of the check.
        table, column: what is judged, row by row.
        expected: what is wanted, in words.
        least: a number, or the column that holds a number for each row; None: no lower limit.
        most: None: no upper limit.
        blocking: a dataset that breaks the rule is not fit; otherwise it is a warning.
    """

    name: str
    table: Table
    column: str
    expected: str
    least: float | str | None = None
    most: float | None = None
    blocking: bool = True

    def expectation(self) -> Any:
        """Return the rule as an expectation of Great Expectations, with the rule's name in its `meta`."""
        from great_expectations import expectations as gxe

        kept: dict[str, Any] = {"meta": {"check": self.name}, "severity": "critical" if self.blocking else "warning"}
        if isinstance(self.least, str):
            return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A=self.column, column_B=self.least, or_equal=True, **kept
            )
        return gxe.ExpectColumnValuesToBeBetween(column=self.column, min_value=self.least, max_value=self.most, **kept)


def rules_for(manifest: Manifest, shapes: Mapping[Split, EpisodeShape]) -> tuple[Rule, ...]:
    """Return the rules for a dataset and the episodes that are asked of its splits."""
    ways = ", ".join(f"{split} {shape.least_way}" for split, shape in shapes.items()) or "no episodes are asked for"
    counts = ", ".join(f"{split} {shape.least_examples}" for split, shape in shapes.items()) or "at least one"
    return (
        Rule("enough classes", "splits", "classes", f"as many classes as the way: {ways}", least="wanted"),
        Rule("enough examples", "classes", "count", f"shot + query in each class: {counts}", least="wanted"),
        Rule("splits share no class name", "classes", "splits_of_name", "each class in one split", most=1),
        Rule("splits share no class content", "classes", "splits_of_content", "each class in one split", most=1),
        Rule("splits share no example", "classes", "leaked", "no example is in classes of two splits", most=0),
        Rule("example ids are unique", "dataset", "repeated_ids", "no id twice", most=0),
        Rule(
            "no class of identical examples",
            "classes",
            "distinct",
            "two different examples in each class that has two",
            least="fewest_distinct",
        ),
        Rule(
            "files could be read",
            "dataset",
            "unreadable",
            f"at most {manifest.options.max_unreadable:.1%} of the files unreadable",
            most=manifest.options.max_unreadable,
        ),
        *_value_rules(manifest),
        Rule("classes share no example", "classes", "shared", "no example is in two classes", most=0, blocking=False),
        Rule("no example is repeated", "classes", "repeated", "no example twice in its class", most=0, blocking=False),
        Rule(
            "classes are balanced",
            "splits",
            "imbalance",
            f"the largest class has at most {LARGEST_IMBALANCE} times the examples of the smallest",
            most=LARGEST_IMBALANCE,
            blocking=False,
        ),
    )


def _value_rules(manifest: Manifest) -> tuple[Rule, ...]:
    if manifest.spec.dtype == "uint8":
        spread = f"the values of each class spread over {LEAST_SPREAD} or more of 255 levels"
        return (
            Rule("no blank pictures", "classes", "constant", "no picture of a single value", most=0, blocking=False),
            Rule("pictures have contrast", "classes", "spread", spread, least=LEAST_SPREAD, blocking=False),
        )
    distance = f"within {LARGEST_DISTANCE:g} standard deviations of the training mean"
    return (
        Rule("values are finite", "classes", "not_finite", "no infinite value, none that is not a number", most=0),
        Rule("values are in range", "classes", "largest", distance, most=LARGEST_DISTANCE, blocking=False),
    )
