import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, Manifest, read_manifest
from metalearn_core.errors import MetalearnError, UsageError, one_line

from .conftest import class_image, png, write_classes

OPTIONS = BuildOptions(image_size=12)


def split_of(manifest: Manifest) -> dict[str, str]:
    return {entry.name: entry.split for entry in manifest.classes}


def test_digest_does_not_depend_on_the_number_of_workers(image_folder: Path, tmp_path: Path) -> None:
    digests = {build_dataset(str(image_folder), tmp_path / str(n), OPTIONS, workers=n).digest for n in (1, 2, 3)}
    assert len(digests) == 1


def test_digest_does_not_depend_on_file_names_or_location(image_folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(image_folder, renamed)
    for number, file in enumerate(sorted(renamed.rglob("*.png"), reverse=True)):
        file.rename(file.with_name(f"{number:05d} 'new' ü.png"))
    one = build_dataset(str(image_folder), tmp_path / "a", OPTIONS)
    other = build_dataset(str(renamed), tmp_path / "b", OPTIONS)
    assert one.digest == other.digest
    assert one.shards[0].sha256 != other.shards[0].sha256


def test_digest_does_not_depend_on_how_the_source_is_stored(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"image": file.read_bytes(), "class": file.parent.name, "domain": file.parent.parent.name}
        for file in sorted(image_folder.rglob("*.png"))
    ]
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(shuffled), tmp_path / "rows.parquet")
    from_rows = build_dataset(str(tmp_path / "rows.parquet"), tmp_path / "a", OPTIONS)
    assert from_rows.digest == build_dataset(str(image_folder), tmp_path / "b", OPTIONS).digest


def test_digest_depends_on_pixels_options_and_class_names(image_folder: Path, tmp_path: Path) -> None:
    changed, renamed = tmp_path / "changed", tmp_path / "other"
    for folder in (changed, renamed):
        shutil.copytree(image_folder, folder)
    class_image("other", 0).save(changed / "domain0" / "class0" / "00.png")
    (renamed / "domain0" / "class0").rename(renamed / "domain0" / "klass0")
    digests = [
        build_dataset(str(image_folder), tmp_path / "1", OPTIONS).digest,
        build_dataset(str(image_folder), tmp_path / "2", OPTIONS.model_copy(update={"image_size": 13})).digest,
        build_dataset(str(changed), tmp_path / "3", OPTIONS).digest,
        build_dataset(str(renamed), tmp_path / "4", OPTIONS).digest,
    ]
    assert len(set(digests)) == 4


def test_options_are_recorded_as_they_were_resolved(image_folder: Path, tmp_path: Path) -> None:
    options = build_dataset(str(image_folder), tmp_path / "out", OPTIONS).options
    assert (options.color, options.split_by) == ("grey", "domain")


def test_one_coloured_file_makes_a_small_source_rgb(tmp_path: Path) -> None:
    source = write_classes(tmp_path / "source", ["a", "b", "c"], 3)
    class_image("b", 1).convert("RGB").save(source / "b" / "01.png")
    manifest = build_dataset(str(source), tmp_path / "out", OPTIONS)
    assert manifest.options.color == "rgb"
    assert manifest.spec.example_shape == (3, 12, 12)
    assert len(manifest.spec.mean) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_one_coloured_image_anywhere_makes_the_dataset_coloured(tmp_path: Path, workers: int) -> None:
    source = write_classes(tmp_path / "source", ["a", "b"], 80)
    assert build_dataset(str(source), tmp_path / "grey", OPTIONS, workers=workers).options.color == "grey"
    class_image("a", 4).convert("RGB").save(source / "a" / "04.png")
    assert build_dataset(str(source), tmp_path / "rgb", OPTIONS, workers=workers).options.color == "rgb"


def test_classes_stand_by_split_then_name_and_each_has_a_row_group(dataset_folder: Path) -> None:
    manifest = read_manifest(dataset_folder)
    order = [(("train", "validation", "test").index(entry.split), entry.name) for entry in manifest.classes]
    assert order == sorted(order)
    assert [entry.id for entry in manifest.classes] == list(range(24))
    for entry in manifest.classes:
        with pq.ParquetFile(dataset_folder / manifest.shards[entry.shard].path) as file:
            group = file.read_row_group(entry.row_group)
        assert set(group.column("class").to_pylist()) == {entry.id}
        assert {key.rsplit("/", 1)[0] for key in group.column("id").to_pylist()} == {entry.name}


def test_mean_and_std_are_those_of_the_training_split(dataset: EpisodeDataset) -> None:
    count = sum(entry.count for entry in dataset.manifest.of_split("train"))
    train = dataset.examples[:count].double() / 255
    assert dataset.spec.mean == pytest.approx([train.mean().item()], abs=1e-12)
    assert dataset.spec.std == pytest.approx([train.std(correction=0).item()], abs=1e-12)


def test_training_classes_count_their_rotations(dataset: EpisodeDataset) -> None:
    train = dataset.manifest.of_split("train")
    assert dataset.spec.train_classes == sum(len(entry.rotations) for entry in train) == 4 * len(train)
    assert {entry.rotations for entry in dataset.manifest.of_split("test")} == {(0,)}


def test_shards_are_cut_at_a_size(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn_core.data.shards.SHARD_BYTES", 5000)
    manifest = build_dataset(str(image_folder), tmp_path / "cut", OPTIONS)
    assert len(manifest.shards) > 2
    whole = EpisodeDataset.open(tmp_path / "cut")
    assert whole.digest == manifest.digest
    assert len(whole.examples) == 24 * 8


def test_split_file_decides(image_folder: Path, tmp_path: Path) -> None:
    names = [f"domain{d}/class{c}" for d in range(6) for c in range(4)]
    rows = tuple((name, "test" if "class3" in name else "train") for name in names)
    options = OPTIONS.model_copy(update={"split_file": rows})
    assert split_of(build_dataset(str(image_folder), tmp_path / "out", options)) == dict(rows)


def test_a_rebuild_with_more_classes_keeps_the_old_splits(
    image_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    shutil.copytree(image_folder, more)
    write_classes(more, [f"domain{d}/extra" for d in range(9)], 4)
    before = split_of(read_manifest(dataset_folder))
    after = split_of(build_dataset(str(more), tmp_path / "out", OPTIONS, split_from=dataset_folder / "manifest.json"))
    assert {name: after[name] for name in before} == before
    assert len(after) == 33


def test_a_rebuild_whose_classes_are_named_otherwise_is_refused(tmp_path: Path) -> None:
    """A second folder beside the first one makes that one's name part of the names: silently, all would be new."""
    source = write_classes(tmp_path / "source", [f"latin/{letter}" for letter in "abcdef"], 4)
    build_dataset(str(source), tmp_path / "first", OPTIONS)
    write_classes(source, ["greek/alpha"], 4)
    with pytest.raises(UsageError, match=r"none of the 6 classes of dataset .* 'a', the source's like 'greek/alpha'"):
        build_dataset(str(source), tmp_path / "second", OPTIONS, split_from=tmp_path / "first")
    assert not (tmp_path / "second").exists()


def test_a_rebuild_with_a_domain_more_splits_as_the_first_build_did(tmp_path: Path) -> None:
    names = [f"domain{d}/class{c}" for d in range(4) for c in range(5)]
    source = write_classes(tmp_path / "source", names, 3)
    first = build_dataset(str(source), tmp_path / "first", OPTIONS)
    assert first.options.split_by == "class"
    write_classes(source, [f"domain4/class{c}" for c in range(5)], 3)
    second = build_dataset(str(source), tmp_path / "second", OPTIONS, split_from=tmp_path / "first")
    assert second.options.split_by == "class"
    assert {name: split_of(second)[name] for name in names} == split_of(first)


def test_splits_from_a_file_and_from_an_earlier_build_are_one_too_many(
    image_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    options = OPTIONS.model_copy(update={"split_file": (("a", "train"),)})
    with pytest.raises(UsageError, match="split_file and split_from are both given"):
        build_dataset(str(image_folder), tmp_path / "out", options, split_from=dataset_folder)


def test_small_classes_are_left_out_and_named(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source)
    write_classes(source, ["domain0/small"], 2)
    manifest = build_dataset(str(source), tmp_path / "out", OPTIONS.model_copy(update={"min_examples": 3}))
    assert manifest.left_out == ("domain0/small",)
    assert len(manifest.classes) == 24


def test_unreadable_files_are_named_counted_and_left_out(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source)
    good = (source / "domain0" / "class0" / "00.png").read_bytes()
    bad = {"zero.png": b"", "cut.png": good[: len(good) // 2], "text.png": b"some text", "two\nlines.png": b"x"}
    for name, content in bad.items():
        (source / "domain0" / "class0" / name).write_bytes(content)
    (source / "domain1" / "class0" / "gone.png").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events"))
    manifest = build_dataset(str(source), tmp_path / "out", OPTIONS)
    assert {found.path.rsplit("/", 1)[1] for found in manifest.unreadable} == {
        "zero.png", "cut.png", "text.png", "two\\nlines.png", "gone.png",
    }  # fmt: skip
    assert manifest.unreadable[-1].reason == "no such file or directory"
    assert (tmp_path / "events").read_text().count('"warning"') == 5
    assert manifest.digest == build_dataset(str(image_folder), tmp_path / "clean", OPTIONS).digest


def test_too_many_unreadable_files_stop_the_build(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source)
    for number in range(20):
        (source / "domain2" / "class1" / f"bad{number:02d}.png").write_bytes(b"")
    with pytest.raises(
        MetalearnError, match=r"20 of 212 examples .* the first: domain2/class1/bad00.png: not an image"
    ):
        build_dataset(str(source), tmp_path / "out", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_strange_file_names_work(tmp_path: Path) -> None:
    names = ["a b", "quote\"s and 's", "line\nend", "ünïcödé 字", os.fsdecode(b"no utf8 \xff"), "plain"]
    source = tmp_path / "sou rce\n"
    for number, name in enumerate(names):
        folder = source / name
        folder.mkdir(parents=True)
        for k in range(4):
            (folder / os.fsdecode(b"%d '\"\n\xfe.png" % k)).write_bytes(png(class_image(str(number), k)))
    manifest = build_dataset(str(source), tmp_path / "out", OPTIONS, workers=2)
    assert len(manifest.classes) == 6
    dataset = EpisodeDataset.open(tmp_path / "out")
    keys = dataset.example_ids(range(24))
    assert len(set(keys)) == 24
    assert all(key.isprintable() for key in keys)


def one_class(folder: Path) -> None:
    write_classes(folder, ["only"], 3)


def no_classes(folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [(one_class, "one class only"), (no_classes, "no images found")],
)
def test_a_source_without_classes_is_one_clear_line(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(MetalearnError, match=message) as caught:
        build_dataset(str(tmp_path / "source"), tmp_path / "out", OPTIONS)
    assert "\n" not in one_line(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be 1 to 1024 pixels, got 0"),
        ({"min_examples": -1}, "min_examples must be at least 1"),
        ({"ratios": (0.5, 0.5, 0.5)}, "ratios must be three shares that sum to 1, got 0.5,0.5,0.5"),
        ({"ratios": (1.5, -0.5, 0.0)}, "ratios must be"),
        ({"max_unreadable": 2.0}, "max_unreadable must be a share"),
        ({"split_file": (("nobody", "test"),)}, "split file: the source has no class 'nobody'"),
        ({"split_file": (("domain0/class0", "test"),)}, "split file: no row for class 'domain0/class1' and 22 more"),
    ],
)
def test_wrong_options_are_named(image_folder: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_dataset(str(image_folder), tmp_path / "out", BuildOptions(**{**OPTIONS.model_dump(), **options}))
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_overwritten(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="is there already and not empty"):
        build_dataset(str(image_folder), tmp_path, OPTIONS)
    with pytest.raises(UsageError, match="is there already"):
        build_dataset(str(image_folder), tmp_path / "mine", OPTIONS)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_link_to_an_empty_folder_stays_and_leads_to_the_dataset(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere" / "empty")
    manifest = build_dataset(str(image_folder), tmp_path / "out", OPTIONS)
    assert (tmp_path / "out").is_symlink()
    assert EpisodeDataset.open(tmp_path / "elsewhere" / "empty").digest == manifest.digest
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(
    ("pretend", "message"), [("mount", "is a mount point"), ("link", "is a link that points to nothing")]
)
def test_what_no_folder_can_take_the_place_of_is_refused_before_anything_is_decoded(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend: str, message: str
) -> None:
    out = tmp_path / "out"
    if pretend == "mount":
        out.mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path == out)  # only root can mount
    else:
        out.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("metalearn_core.data.build.decode_classes", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UsageError, match=message):
        build_dataset(str(image_folder), out, OPTIONS)


def test_omniglot_has_964_characters_of_30_alphabets(tmp_path: Path) -> None:
    location = os.environ.get("METALEARN_OMNIGLOT")
    if not location:
        pytest.skip("METALEARN_OMNIGLOT does not name an unpacked images_background folder")
    manifest = build_dataset(location, tmp_path / "out")
    assert len(manifest.classes) == 964
    assert len({entry.domain for entry in manifest.classes}) == 30
    assert {entry.count for entry in manifest.classes} == {20}
    assert manifest.spec.example_shape == (1, 28, 28)


def test_a_huge_image_among_good_ones_costs_nothing(image_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(image_folder, source)
    Image.new("1", (20_000, 20_000)).save(source / "domain0" / "class0" / "huge.png")
    manifest = build_dataset(str(source), tmp_path / "out", OPTIONS)
    assert [found.path for found in manifest.unreadable] == ["domain0/class0/huge.png"]
    assert "64 megapixels" in manifest.unreadable[0].reason
