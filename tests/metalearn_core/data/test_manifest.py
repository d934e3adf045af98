import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import read_manifest
from metalearn_core.errors import MetalearnError

Content = dict[str, Any]


def edited(dataset_folder: Path, folder: Path, edit: Callable[[Content], object]) -> Path:
    """Return a folder with the manifest of a dataset after an edit."""
    content = json.loads((dataset_folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["classes"][0].update(split="test"),
        lambda content: content["classes"][0].update(rotations=[0]),
        lambda content: content["classes"][1].update(id=0),
        lambda content: content["classes"].pop(),
        lambda content: content["spec"].update(mean=[0.25]),
        lambda content: content["spec"].update(std=[0.25]),
        lambda content: content["spec"].update(train_classes=3),
        lambda content: content["options"].update(split_seed=7),
        lambda content: content.update(digest="0" * 32),
    ],
)
def test_an_edited_manifest_is_not_read_as_good(
    dataset_folder: Path, tmp_path: Path, edit: Callable[[Content], object]
) -> None:
    folder = edited(dataset_folder, tmp_path, edit)
    with pytest.raises(MetalearnError, match=r"manifest.json is damaged: its digest does not fit its content"):
        read_manifest(folder)
    with pytest.raises(MetalearnError, match="does not fit"):
        EpisodeDataset.open(folder)


def test_what_is_for_people_is_no_part_of_the_digest(dataset_folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(edited(dataset_folder, tmp_path, lambda content: content.update(source="moved here")))
    assert manifest.digest == read_manifest(dataset_folder).digest


def test_a_newer_schema_is_said_before_anything_else(dataset_folder: Path, tmp_path: Path) -> None:
    folder = edited(dataset_folder, tmp_path, lambda content: content.update(schema_version=99, new="unknown"))
    with pytest.raises(MetalearnError, match="schema version 99"):
        read_manifest(folder)
