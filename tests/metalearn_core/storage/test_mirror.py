"""What this machine notes of its copies of objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metalearn_core.storage import mirror
from metalearn_core.storage.mirror import fetch_objects, forget, is_noted, noted_names
from metalearn_core.storage.objects import Prefix


def test_the_more_is_noted_the_less_often_the_notes_are_written(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, written = Prefix.parse(f"{bucket}/many"), list[int]()
    for number in range(60):
        prefix.write(f"{number:02d}", b"x")
    write = mirror._write_notes

    def counted(folder: Path, noted: Mapping[str, Any]) -> None:
        written.append(len(noted))
        write(folder, noted)

    monkeypatch.setattr(mirror, "_write_notes", counted)
    monkeypatch.setattr(mirror, "_NOTED_AFTER", 1)
    fetch_objects(prefix, list(prefix.objects()))
    assert written[-1] == 60
    assert len(written) < 20


def test_an_object_is_noted_until_it_changes_or_all_is_forgotten(bucket: str) -> None:
    prefix = Prefix.parse(f"{bucket}/a")
    prefix.write("x", b"one")
    (found,) = prefix.objects()
    assert not is_noted(prefix, found)
    folder = fetch_objects(prefix, [found])
    (folder / "x").unlink()
    assert is_noted(prefix, found)
    prefix.write("x", b"two")
    (other,) = prefix.objects()
    assert not is_noted(prefix, other)
    assert noted_names(prefix) == {"x"}
    forget(prefix)
    assert noted_names(prefix) == set()
    assert not is_noted(prefix, found)
