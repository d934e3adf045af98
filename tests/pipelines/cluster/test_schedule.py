"""Schedules as KFP's API server reads them: six fields."""

import pytest

from metalearn_core.errors import UsageError
from pipelines.cluster.schedule import check_cron


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 3 * * *",
        "*/10 * * * * ?",
        "0 0 9 ? * 2-6",
        "0 0,30 9-17 1,15 jan-jun MON-fri",
        "59 59 23 31 12 6",
        "0 5/15 * * * *",
    ],
)
def test_six_fields_are_taken(cron: str) -> None:
    assert check_cron(cron) == cron


def test_spaces_are_made_single() -> None:
    assert check_cron("  0  0 3\t* * * ") == "0 0 3 * * *"


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("", "got 0"),
        ("0 3 * * *", "got 5"),
        ("0 0 3 * * * 2026", "got 7"),
        ("@daily", "got 1"),
        ("60 0 3 * * *", "second: got '60'"),
        ("0 -1 3 * * *", "minute: got '-1'"),
        ("0 0 24 * * *", "hour: got '24'"),
        ("0 0 3 0 * *", "day of the month: got '0'"),
        ("0 0 3 * 13 *", "month: got '13'"),
        ("0 0 3 * * 7", "day of the week: got '7'"),
        ("0 0 3 * * monday", "day of the week: got 'monday'"),
        ("0 0 5-3 * * *", "hour: got '5-3'"),
        ("0 */0 3 * * *", "minute: got '*/0'"),
        ("0 */x 3 * * *", "minute: got '*/x'"),
        ("0 1,,2 3 * * *", "minute: got '1,,2'"),
        ("0 1-2-3 3 * * *", "minute: got '1-2-3'"),
        ("0 0 3 L * *", "day of the month: got 'L'"),
        ("0 0 3 * * ²", "day of the week: got '²'"),
    ],
)
def test_anything_else_is_refused_with_the_field(cron: str, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_cron(cron)
    assert "--schedule" in str(refusal.value)
    assert words in str(refusal.value)
