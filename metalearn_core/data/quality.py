"""Is this dataset fit for the episodes that are asked of it? Great Expectations judges the dataset's statistics."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import Manifest, Record, Split
from metalearn_core.data.quality_rules import Rule, rules_for
from metalearn_core.data.tables import DatasetTables, dataset_tables
from metalearn_core.pages import render_page
from metalearn_core.storage import write_bytes, write_json

if TYPE_CHECKING:
    from metalearn_core.data.dataset import EpisodeDataset

REPORT_NAME, SUITE_NAME, PAGE_NAME = "quality.json", "suite.json", "quality.html"
TEMPLATE = Path(__file__).with_name("quality.html.j2")

_NAMED = 5
_KEYS = {"classes": ["split", "name"], "splits": ["split"], "dataset": ["dataset"]}


class Check(Record):
    """One rule, what it found, and what it wants.

    Attributes:
        passed: False as well where the check itself broke: then nothing is known about the data.
        broken: why the check could not be made; None where it could.
        blocking: the dataset is not fit where this fails; otherwise it is a warning.
        where: the classes or splits that broke the rule, all of them.
    """

    name: str
    passed: bool
    observed: str
    expected: str
    blocking: bool
    broken: str | None = None
    where: tuple[str, ...] = ()


class SplitStatistics(Record):
    """One split in numbers; `classes` counts rotations, `imbalance` is the largest class by the smallest."""

    split: Split
    classes: int
    wanted: int
    domains: int
    examples: int
    smallest: int
    largest: int
    imbalance: float


class QualityReport(Record):
    """What was found, check by check.

    Attributes:
        passed: every blocking check passed.
        shapes: the episodes that were asked for, by split.
        suite: the Great Expectations suites, a JSON object a statistics table.
        results: their validation results, likewise, without tracebacks.
    """

    passed: bool
    shapes: dict[str, str]
    checks: tuple[Check, ...]
    splits: tuple[SplitStatistics, ...]
    suite: dict[str, Any]
    results: dict[str, Any]


def validate_dataset(dataset: "EpisodeDataset", shapes: Mapping[Split, EpisodeShape]) -> QualityReport:
    """Judge an episode dataset for the episodes that are asked of it.

    The statistics are computed class by class, in bounded memory; Great Expectations judges those. A check that could
    not be made is told apart from data that are bad (`Check.broken`).

    Args:
        dataset: the episode dataset.
        shapes: the shape of the episodes that each split must be able to give; a split that is not named need not.
    """
    tables = dataset_tables(dataset, shapes)
    return judge(tables, dataset.manifest, shapes)


def judge(tables: DatasetTables, manifest: Manifest, shapes: Mapping[Split, EpisodeShape]) -> QualityReport:
    """Let Great Expectations judge the statistics of a dataset."""
    rules = rules_for(manifest, shapes)
    suites: dict[str, Any] = {}
    results: dict[str, Any] = {}
    outcomes: dict[str, Any] = {}
    for table, key in _KEYS.items():
        suite, validation = _validate(table, getattr(tables, table), key, [r for r in rules if r.table == table])
        suites[table] = suite.to_json_dict()
        results[table] = _without_tracebacks(validation.to_json_dict())
        outcomes |= {outcome.expectation_config.meta["check"]: outcome for outcome in validation.results}
    checks = tuple(_check(rule, outcomes[rule.name]) for rule in rules)
    return QualityReport(
        passed=all(check.passed for check in checks if check.blocking),
        shapes={split: str(shape) for split, shape in shapes.items()},
        checks=checks,
        splits=tuple(SplitStatistics.model_validate(row) for row in tables.splits.to_dict("records")),
        suite=suites,
        results=results,
    )


def write_quality(report: QualityReport, manifest: Manifest, folder: Path) -> None:
    """Write the report, the suites and the page into `folder`: quality.json, suite.json and quality.html."""
    write_json(folder / REPORT_NAME, report.model_dump(mode="json"))
    write_json(folder / SUITE_NAME, report.suite)
    write_quality_page(report, manifest, folder / PAGE_NAME)


def write_quality_page(report: QualityReport, manifest: Manifest, path: Path) -> None:
    """Write the report as one HTML page that needs nothing from anywhere else."""
    page = render_page(TEMPLATE, report=report, manifest=manifest)
    write_bytes(path, page.encode())


def _validate(table: str, rows: Any, key: list[str], rules: list[Rule]) -> tuple[Any, Any]:
    """Ask Great Expectations about one table; return the suite and its validation result."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=[rule.expectation() for rule in rules]))
        asset = context.data_sources.add_pandas("statistics").add_dataframe_asset(table)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
        wanted = {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": key,
            "return_unexpected_index_query": False,
        }
        return suite, batch.validate(suite, result_format=wanted)


def _check(rule: Rule, outcome: Any) -> Check:
    """Turn one validation result into a check; `exception_info` without a verdict means that the check itself broke."""
    broken = _exception(outcome.exception_info)
    if broken is not None:
        text = f"the check could not be made: {broken}"
        return Check(
            name=rule.name, passed=False, observed=text, expected=rule.expected, blocking=rule.blocking, broken=broken
        )
    rows = outcome.result.get("unexpected_index_list") or []
    return Check(
        name=rule.name,
        passed=bool(outcome.success),
        observed=_observed(rule, rows, int(outcome.result["element_count"])),
        expected=rule.expected,
        blocking=rule.blocking,
        where=tuple(_place(rule, row) for row in rows) if rule.table != "dataset" else (),
    )


def _observed(rule: Rule, rows: list[dict[str, Any]], total: int) -> str:
    if rule.table == "dataset":
        return _number(rows[0][rule.column]) if rows else "within the limit"
    if not rows:
        return f"all {total} {rule.table}"
    named = ", ".join(f"{_place(rule, row)} ({_number(row[rule.column])})" for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{len(rows)} of {total} {rule.table}: {named}{more}"


def _place(rule: Rule, row: Mapping[str, Any]) -> str:
    return "/".join(str(row[column]) for column in _KEYS[rule.table])


def _number(value: float) -> str:
    return f"{float(value):.4g}"


def _exception(information: Mapping[str, Any]) -> str | None:
    """Return what an `exception_info` says; it is one record, or a record for each metric."""
    records = [information] if "raised_exception" in information else list(information.values())
    messages = [str(record["exception_message"]) for record in records if record["raised_exception"]]
    return " ".join(messages[0].split()) if messages else None


def _without_tracebacks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tracebacks(inner) for name, inner in value.items() if name != "exception_traceback"}
    return [_without_tracebacks(inner) for inner in value] if isinstance(value, list) else value
