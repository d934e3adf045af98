"""`metalearn predict --explain`: what a prediction may go by, in words and as JSON."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn_core.bundle import save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.model import load_model


@pytest.fixture
def support(images: Path, tmp_path: Path) -> Path:
    for folder in sorted(images.glob("domain0/*"))[:3]:
        shutil.copytree(folder, tmp_path / "support" / folder.name)
    return tmp_path / "support"


def bundle(path: Path, learner: str) -> Path:
    dataset = DatasetSpec(
        modality="image", example_shape=(1, 16, 16), dtype="uint8", mean=(0.4,), std=(0.3,), train_classes=9
    )
    spec = LearnerSpec(learner=learner, backbone_options={"width": 8})
    made = make_learner(spec, dataset, way=3, seed=0)
    save_bundle(path, made, spec, episode=EpisodeShape(3, 2, 3), lineage={"dataset_digest": "d"})
    return path


@pytest.mark.parametrize("learner", ["protonet", "maml"])
def test_json_names_the_nearest_support_files(metalearn: Callable, support: Path, tmp_path: Path, learner: str) -> None:
    model = bundle(tmp_path / "bundle", learner)
    query = support / "class06" / "3.png"
    answer = metalearn("predict", model, "--support", support, "--query", query, "--explain", "--json")
    assert answer.status == 0, answer.errors
    [entry] = answer.json["predictions"]
    assert entry["nearest"][0] == {"file": str(query), "label": "class06", "distance": pytest.approx(0, abs=1e-3)}
    assert answer.json["decides_by_distance"] == (learner == "protonet")
    files = [str(file) for file in sorted(support.rglob("*.png"))]
    labels = [Path(file).parent.name for file in files]
    explained = load_model(model).adapt(files, labels).explain([query])
    assert [near["file"] for near in entry["nearest"]] == [files[place] for place in explained.nearest[0]]
    moved = {layer["layer"]: layer["relative"] for layer in answer.json["adaptation"]["layers"]}
    if learner == "protonet":
        assert set(entry["prototype_distances"]) == {"class00", "class06", "class12"}
        assert min(entry["prototype_distances"], key=entry["prototype_distances"].get) == entry["label"]
        assert moved == {}
    else:
        assert entry["prototype_distances"] is None
        assert moved["head"] is None, "it starts at zero"
        assert moved["backbone.blocks.3.conv"] > 0
        assert [step["steps"] for step in answer.json["adaptation"]["support_losses"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("learner", "words"), [("protonet", "nearest prototypes"), ("maml", "moved by, %")])
def test_the_table_says_the_same_in_words(
    metalearn: Callable, support: Path, tmp_path: Path, learner: str, words: str
) -> None:
    model, query = bundle(tmp_path / "bundle", learner), support / "class06" / "3.png"
    shown = metalearn("predict", model, "--support", support, "--query", query, "--explain", COLUMNS="400")
    assert shown.status == 0, shown.errors
    assert "nearest support files" in shown.output
    assert shown.output.count(str(query)) >= 3
    assert words in shown.output
    assert ("does not decide by distances" in shown.output) == (learner == "maml")


def test_without_the_option_nothing_is_explained(metalearn: Callable, support: Path, tmp_path: Path) -> None:
    answer = metalearn("predict", bundle(tmp_path / "b", "maml"), "--support", support, "--query", support, "--json")
    assert set(answer.json) == {"predictions"}
    assert set(answer.json["predictions"][0]) == {"file", "label", "probabilities"}


@pytest.mark.parametrize("learner", ["protonet", "maml"])
def test_an_adapted_bundle_predicts_without_its_support_set(
    metalearn: Callable, support: Path, tmp_path: Path, learner: str
) -> None:
    model, query = bundle(tmp_path / "bundle", learner), support / "class06" / "3.png"
    expected = metalearn("predict", model, "--support", support, "--query", query, "--json").json
    answer = metalearn("adapt", model, "--support", support, "-o", tmp_path / "mine", "--json")
    assert answer.status == 0, answer.errors
    assert answer.json["classes"] == ["class00", "class06", "class12"]
    shutil.rmtree(model)
    found = metalearn("predict", tmp_path / "mine", "--query", query, "--explain", "--json")
    assert found.status == 0, found.errors
    [entry] = found.json["predictions"]
    assert {name: entry[name] for name in ("file", "label", "probabilities")} == expected["predictions"][0]
    assert entry["nearest"][0]["file"].startswith("example ")
    assert entry["nearest"][0]["label"] == "class06"


def test_a_model_without_a_support_set_asks_for_one(metalearn: Callable, support: Path, tmp_path: Path) -> None:
    answer = metalearn("predict", bundle(tmp_path / "bundle", "protonet"), "--query", support)
    assert answer.status == 2
    assert "give --support, or a bundle made by `adapt`" in answer.errors


def test_paths_are_shown_as_they_are(metalearn: Callable, support: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models[b]" / ":cat:" / "a[/x]"
    for verb, output, shown in (
        (("adapt", bundle(tmp_path / "bundle", "protonet"), "--support", support), folder / "mine", folder / "mine"),
        (("export", tmp_path / "bundle"), folder / "exports", folder / "exports" / "backbone.onnx"),
    ):
        answer = metalearn(*verb, "-o", output)
        assert (answer.status, answer.errors) == (0, "")
        assert answer.output.startswith(f"{shown}: ")


def test_exports_are_written_and_refused_in_a_line(metalearn: Callable, tmp_path: Path) -> None:
    answer = metalearn("export", bundle(tmp_path / "protonet", "protonet"), "-o", tmp_path / "exports")
    assert answer.status == 0, answer.errors
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {
        "backbone.onnx",
        "backbone.pt2",
        "backbone.json",
    }
    assert answer.output.count("features differ by at most") == 2
    assert answer.errors == ""
    answer = metalearn("export", bundle(tmp_path / "maml", "maml"), "-o", tmp_path / "other")
    assert (answer.status, len(answer.errors.splitlines())) == (2, 1)
    assert not (tmp_path / "other").exists()
