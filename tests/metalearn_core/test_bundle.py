import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metalearn_core.bundle import (
    FORMAT_VERSION,
    DamagedError,
    Lineage,
    check_place,
    load_bundle,
    read_bundle,
    read_training_images,
    save_bundle,
    send_bundle,
    verify_bundle,
)
from metalearn_core.bundle_fetch import resolve_model
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.storage.place import Place

SPEC = DatasetSpec(
    modality="image", example_shape=(1, 28, 28), dtype="uint8", mean=(0.1,), std=(0.3,), train_classes=20
)
LINEAGE = Lineage(
    dataset_digest="d" * 32, dataset_uri="/data", seed=3, episodes=100, training_class_digests=("aa", "bb")
)


FILES = ("bundle.json", "weights.safetensors", "training_images.safetensors", "bundle.sha256")
IMAGES = [hashlib.sha256(bytes([number])).digest()[:16] for number in (7, 3, 7, 200)]


def save(path, learner="protonet", **options):
    spec = LearnerSpec(learner=learner, options=options, backbone_options={"width": 8})
    made = make_learner(spec, SPEC, way=5, seed=1)
    digest = save_bundle(path, made, spec, episode=EpisodeShape(5, 1, 15), lineage=LINEAGE, training_images=IMAGES)
    return digest, made


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_a_loaded_learner_is_the_one_that_was_saved(tmp_path, name):
    digest, saved = save(tmp_path / "b", name)
    loaded, description = load_bundle(tmp_path / "b")
    assert not loaded.training
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert loaded.config == saved.config
    assert (description.way, description.input, description.lineage) == (saved.way, SPEC, LINEAGE)
    assert (description.episode.way, description.episode.shot, description.episode.query) == (5, 1, 15)
    assert verify_bundle(tmp_path / "b") == digest


def test_the_digest_depends_on_the_content_alone(tmp_path):
    first, _ = save(tmp_path / "one")
    second, _ = save(tmp_path / "two")
    other, _ = save(tmp_path / "three", learning_rate=0.5)
    assert first == second != other
    assert first == hashlib.sha256((tmp_path / "one" / "bundle.sha256").read_bytes()).hexdigest()


def test_the_images_of_its_training_are_kept_once_each_and_count_for_the_digest(tmp_path):
    digest, learner = save(tmp_path / "b")
    kept = read_training_images(tmp_path / "b")
    assert kept.tolist() == sorted({int.from_bytes(one[:8], "little", signed=True) for one in IMAGES})
    description = {"episode": EpisodeShape(5, 1, 15), "lineage": LINEAGE}
    spec = LearnerSpec(learner="protonet", backbone_options={"width": 8})
    assert save_bundle(tmp_path / "without", learner, spec, **description) != digest
    assert read_training_images(tmp_path / "without").tolist() == []
    assert load_bundle(tmp_path / "without")[1] == load_bundle(tmp_path / "b")[1]


def test_images_that_were_added_later_are_not_believed(tmp_path):
    _, learner = save(tmp_path / "a")
    spec = LearnerSpec(learner="protonet", backbone_options={"width": 8})
    save_bundle(tmp_path / "b", learner, spec, episode=EpisodeShape(5, 1, 15), lineage=LINEAGE)
    shutil.copy(tmp_path / "a" / "training_images.safetensors", tmp_path / "b")
    with pytest.raises(MetalearnError, match=r"training_images\.safetensors is not what"):
        verify_bundle(tmp_path / "b")


def test_sha256sum_can_check_a_bundle(tmp_path):
    save(tmp_path / "b")
    assert subprocess.run(["sha256sum", "-c", "bundle.sha256"], cwd=tmp_path / "b", check=False).returncode == 0


def test_saving_again_replaces_a_bundle_but_nothing_else(tmp_path):
    save(tmp_path / "b")
    digest, _ = save(tmp_path / "b", learning_rate=0.5)
    assert verify_bundle(tmp_path / "b") == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else"):
        save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_where_a_bundle_cannot_be_replaced_the_old_one_stays(tmp_path, monkeypatch):
    digest, _ = save(tmp_path / "b")
    rename = Path.rename

    def full_disk(source, target):
        if source.name.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "b", learning_rate=0.5)
    assert verify_bundle(tmp_path / "b") == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_a_replacement_that_was_killed_loses_nothing_and_is_cleared_away_by_the_next(tmp_path):
    digest, _ = save(tmp_path / "b")
    code = (
        "import os, pathlib, sys; from metalearn_core.bundle import _replacement\n"
        "with _replacement(pathlib.Path(sys.argv[1])) as folder:\n"
        "    pathlib.Path.rename = lambda source, target: (os.rename(source, target), os._exit(9))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=False)
    assert killed.returncode == 9
    (aside,) = tmp_path.glob(".b.old")
    assert verify_bundle(aside) == digest
    assert save(tmp_path / "b")[0] == digest
    assert not aside.exists()


def test_an_unknown_field_of_the_lineage_is_refused(tmp_path):
    spec = LearnerSpec(learner="protonet")
    made = make_learner(spec, SPEC)
    with pytest.raises(UsageError, match="lineage"):
        save_bundle(
            tmp_path / "b", made, spec, episode=EpisodeShape(5, 1, 5), lineage={"dataset_digest": "d", "sed": 1}
        )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_one_flipped_bit_is_noticed(tmp_path, name, place):
    save(tmp_path / "b")
    path = tmp_path / "b" / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError) as error:
        load_bundle(tmp_path / "b")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(tmp_path, name):
    save(tmp_path / "b")
    path = tmp_path / "b" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DamagedError, match=name):
        verify_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing"):
        verify_bundle(tmp_path / "b")


def reseal(folder):
    """Bring the digests up to date after a change, as whoever wrote such a bundle would have."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES[:-1]]
    (folder / "bundle.sha256").write_text("".join(lines))


def change(folder, **values):
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    reseal(folder)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    save(tmp_path / "b")
    change(tmp_path / "b", format_version=FORMAT_VERSION + 1, tokenizer="new")
    with pytest.raises(MetalearnError, match=r"format version 2.*upgrade") as error:
        read_bundle(tmp_path / "b")
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"way": "many"}, "way"),
        ({"learner": "protonett"}, "did you mean 'protonet'"),
        ({"options": {"sped": 1}}, "sped"),
    ],
)
def test_a_description_that_makes_no_sense_is_one_line(tmp_path, values, words):
    save(tmp_path / "b")
    change(tmp_path / "b", **values)
    with pytest.raises(MetalearnError, match=words) as error:
        load_bundle(tmp_path / "b")
    assert "bundle.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_learner_are_refused(tmp_path):
    save(tmp_path / "b")
    change(tmp_path / "b", backbone_options={"width": 16})
    with pytest.raises(MetalearnError, match="does not fit") as error:
        load_bundle(tmp_path / "b")
    assert "\n" not in str(error.value)


def test_a_pickle_beside_the_weights_is_refused(tmp_path):
    save(tmp_path / "b")
    (tmp_path / "b" / "extra.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(MetalearnError, match=r"extra\.pkl"):
        load_bundle(tmp_path / "b")


def test_verifying_needs_no_torch(tmp_path):
    save(tmp_path / "b")
    code = (
        "import sys, pathlib; from metalearn_core.bundle import read_bundle, read_training_images, verify_bundle\n"
        f"path = pathlib.Path({str(tmp_path / 'b')!r})\n"
        "verify_bundle(path); read_bundle(path); read_training_images(path)\n"
        "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "no such folder"),
        ("gs://b/bundle", "no address of a"),
        ("a/b/c@d", "no address of a model"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, words):
    with pytest.raises(MetalearnError, match=words):
        resolve_model(address)


def test_a_folder_is_its_own_address(tmp_path):
    save(tmp_path / "name@alias")
    assert resolve_model(str(tmp_path / "name@alias")) == tmp_path / "name@alias"


def test_a_bundle_in_a_bucket_is_sent_replaced_and_loaded(bucket, tmp_path, monkeypatch):
    place = Place.at(f"{bucket}/models/one")
    for rate in (0.1, 0.2):
        save(place.folder, learning_rate=rate)
        send_bundle(place)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "elsewhere"))
    assert read_bundle(resolve_model(f"{bucket}/models/one")).options["learning_rate"] == 0.2
    place.prefix.write("weights.safetensors", b"gone bad")
    with pytest.raises(MetalearnError, match="is damaged"):
        load_bundle(resolve_model(f"{bucket}/models/one"))
    place.prefix.remove(["weights.safetensors"])
    with pytest.raises(MetalearnError, match=r"s3://.*weights.safetensors is missing"):
        resolve_model(f"{bucket}/models/one")
    with pytest.raises(MetalearnError, match="there is none at s3://"):
        resolve_model(f"{bucket}/models/two")


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A tracking database in which `few-shot` has two versions that hold a bundle."""
    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    from metalearn_core.tracking_server import client, prepare

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        prepare(uri, root / "artifacts", "few-shot")
        mlflow_client = client(uri)
        mlflow_client.create_registered_model("few-shot")
        for number in (1, 2):
            source = root / "source" / str(number)
            save(source / "artifacts" / "bundle", learning_rate=0.1 * number)
            mlflow_client.create_model_version("few-shot", str(source))
        mlflow_client.set_registered_model_alias("few-shot", "champion", "2")
        yield uri


@pytest.mark.parametrize(
    ("address", "rate"), [("few-shot@champion", 0.2), ("models:/few-shot@champion", 0.2), ("models:/few-shot/1", 0.1)]
)
def test_registered_models_are_fetched(registered, monkeypatch, address, rate):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered)
    assert read_bundle(resolve_model(address)).options["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("few-shot@champian", r"no alias 'champian'.*champion \(version 2\)"),
        ("few-shop@champion", "did you mean 'few-shot'"),
        ("models:/few-shot/9", r"no version 9.*1, 2"),
        ("models:/unheard/1", "unknown model 'unheard'"),
    ],
)
def test_unknown_names_aliases_and_versions_name_what_there_is(registered, monkeypatch, address, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered)
    with pytest.raises(MetalearnError, match=words) as error:
        resolve_model(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [b" \n\n", b"\xff\xfe\x00 weights.safetensors\n", b""])
def test_a_bundle_in_a_bucket_with_damaged_sums_is_refused(bucket, damage):
    place = Place.at(f"{bucket}/models/one")
    save(place.folder)
    send_bundle(place)
    place.prefix.write("bundle.sha256", damage)
    with pytest.raises(MetalearnError, match="is damaged"):
        load_bundle(resolve_model(f"{bucket}/models/one"))


def test_no_bundle_goes_where_something_else_is_in_a_bucket(bucket):
    place = Place.at(f"{bucket}/models/one")
    check_place(place)
    place.prefix.write("manifest.json", b"{}")
    with pytest.raises(UsageError, match=r"s3://.*there is something else already"):
        check_place(place)
