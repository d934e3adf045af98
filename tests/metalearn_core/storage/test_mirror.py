"""What this machine notes of its copies of objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metalearn_core.storage import mirror
from metalearn_core.storage.mirror import fetch, fetch_objects, forget, is_noted, noted_names, send
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


def test_many_objects_are_not_asked_for_one_by_one(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, names = Prefix.parse(f"{bucket}/many"), [f"shards/{number:02d}" for number in range(30)]
    prefix.write("another", b"x")
    for name in names:
        prefix.write(name, name.encode())

    def asked(_: Prefix, name: str = "") -> None:
        raise AssertionError(f"a request for {name} alone")

    monkeypatch.setattr(Prefix, "find", asked)
    folder = fetch(prefix, names)
    assert [path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()] == names
    (folder / names[4]).write_bytes(b"changed here")
    send(prefix, names)
    assert prefix.read(names[4]) == b"changed here"
    assert noted_names(prefix) == set(names)
    prefix.remove([names[7]])
    with pytest.raises(FileNotFoundError, match=f"no such object: '{prefix}/{names[7]}'"):
        fetch(prefix, names)


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
