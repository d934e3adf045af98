import os
from pathlib import Path

import pytest

from metalearn_core.data.decode import decode_image
from metalearn_core.data.sources.contract import SourceClass, UndecodableError
from metalearn_core.data.sources.folder import readable
from metalearn_core.data.sources.open import open_source
from metalearn_core.errors import MetalearnError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"content")
    return root


def classes(root: Path) -> dict[str, SourceClass]:
    return {found.name: found for found in open_source(str(root)).classes(root)}


def test_leaf_folders_are_classes_and_top_folders_domains(tmp_path: Path) -> None:
    found = classes(touch(tmp_path, "latin/a/1.png", "latin/a/2.JPG", "greek/deep/alpha/1.png", "loose/1.png"))
    assert {name: one.domain for name, one in found.items()} == {
        "latin/a": "latin",
        "greek/deep/alpha": "greek",
        "loose": "default",
    }
    assert [item.key for item in found["latin/a"].items] == ["latin/a/1.png", "latin/a/2.JPG"]


def test_a_single_outer_folder_is_passed_through(tmp_path: Path) -> None:
    assert set(classes(touch(tmp_path, "images/more/a/1.png", "images/more/b/1.png"))) == {"a", "b"}


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.png", "a/.2.png", "a/notes.txt", ".cache/c/1.png", "__MACOSX/a/1.png", "b/1.png", "e/x")
    assert {name: len(found.items) for name, found in classes(root).items()} == {"a": 1, "b": 1}


def test_images_beside_the_classes_belong_to_none(tmp_path: Path) -> None:
    assert set(classes(touch(tmp_path, "preview.png", "a/1.png", "b/1.png"))) == {"a", "b"}


def test_links_in_circles_end_and_show_each_folder_once(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/x/1.png", "b/y/1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "x" / "self").symlink_to(root / "a" / "x")
    (root / "b" / "other").symlink_to(root / "a")
    (root / "0").symlink_to(root / "b")
    assert set(classes(root)) == {"a/x", "b/y"}


def test_a_link_that_points_to_itself_is_not_there(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.png", "b/1.png")
    for link in (root / "self", root / "a" / "self", root / "b" / "self.png"):
        link.symlink_to(link.name)
    found = classes(root)
    assert [item.key for one in found.values() for item in one.items] == ["a/1.png", "b/1.png", "b/self.png"]
    with pytest.raises(UndecodableError, match="too many levels of symbolic links"):
        decode_image(found["b"].items[1].place, 8, "grey")
    assert len(open_source(str(root)).fingerprint()) == 64


def test_a_link_to_classes_elsewhere_is_followed(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "c/1.png")
    root = touch(tmp_path / "root", "a/1.png")
    (root / "linked").symlink_to(elsewhere)
    assert set(classes(root)) == {"a", "linked/c"}


def test_a_root_that_links_to_itself_is_empty_not_endless(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(MetalearnError, match="no images found"):
        classes(tmp_path)


def test_a_pipe_named_like_an_image_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(touch(tmp_path, "a/1.png", "b/1.png") / "a" / "2.png")
    assert len(classes(tmp_path)["a"].items) == 1


def test_strange_names_are_shown_on_one_line_and_stay_different() -> None:
    names = ["a b", "quote\"'", "line\nend", "line\\nend", "tab\t", "ü", "字", os.fsdecode(b"bad\xff"), "bad\\xff"]
    shown = [readable(name) for name in names]
    assert len(set(shown)) == len(names)
    assert shown[:4] == ["a b", "quote\"'", "line\\nend", "line\\\\nend"]
    assert shown[5:8] == ["ü", "字", "bad\\xff"]
    assert all(name.isprintable() for name in shown)


def test_a_location_without_anything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MetalearnError, match="there is no such file or folder"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(MetalearnError, match="no images found: expected a folder for each class"):
        classes(tmp_path)
    with pytest.raises(MetalearnError, match="is a file, expected"):
        open_source(str(touch(tmp_path, "x.txt") / "x.txt"))
    with pytest.raises(MetalearnError, match="expected glyphs, a folder, a file, or an address like s3://bucket/place"):
        open_source("gs://bucket/prefix")


def test_fingerprint_sees_added_and_rewritten_files(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.png", "b/1.png")
    first = open_source(str(root)).fingerprint()
    assert open_source(str(root)).fingerprint() == first
    (root / "a" / "1.png").write_bytes(b"changed")
    second = open_source(str(root)).fingerprint()
    touch(root, "a/2.png")
    assert len({first, second, open_source(str(root)).fingerprint()}) == 3
