"""Cores and memory are counted in one place, on every system, and a container's limits count."""

import os
from pathlib import Path

import pytest

from metalearn_core.resources import available_cores, available_memory


def test_a_process_that_is_bound_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_where_the_system_has_no_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, len(os.sched_getaffinity(0))),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, len(os.sched_getaffinity(0))),
        ({"cpu.max": "nonsense"}, len(os.sched_getaffinity(0))),
    ],
)
def test_a_container_has_no_more_cores_than_its_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    write(tmp_path, files)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = "memory/" if names[0] == "memory.limit_in_bytes" else ""
    write(tmp_path, {f"{folder}{names[0]}": "1000000", f"{folder}{names[1]}": "400000"})
    assert available_memory(tmp_path) == 600_000


@pytest.mark.parametrize(
    ("folder", "limit", "used", "total"),
    [("", "memory.max", "memory.current", ""), ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")],
)
def test_files_that_the_kernel_keeps_in_memory_take_none(
    tmp_path: Path, folder: str, limit: str, used: str, total: str
) -> None:
    rows = {"anon": 100_000, "inactive_file": 1, "active_file": 2, "total_inactive_file": 3, "total_active_file": 4}
    rows |= {f"{total}inactive_file": 250_000, f"{total}active_file": 50_000}
    statistics = "\n".join(f"{name} {value}" for name, value in rows.items())
    write(tmp_path, {f"{folder}{limit}": "1000000", f"{folder}{used}": "400000", f"{folder}memory.stat": statistics})
    assert available_memory(tmp_path) == 900_000


def test_without_a_limit_the_machine_decides(tmp_path: Path) -> None:
    write(tmp_path, {"memory.max": "max", "memory.current": "1"})
    assert available_memory(tmp_path) > 10_000_000


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
