"""Exports: other runtimes find the learner's features, no pickle is in them, and what cannot be exported says so."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from metalearn_core import export
from metalearn_core.bundle import save_bundle, verify_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.export import (
    DESCRIPTION_NAME,
    ONNX_NAME,
    TORCH_NAME,
    ExportDescription,
    export_backbone,
    has_embedding,
)
from metalearn_core.learners import LearnerSpec, learner_names, make_learner
from metalearn_core.learners.contract import Learner
from metalearn_core.model import load_model

EMBEDDING = {"protonet", "matchingnet", "relationnet", "centroid", "transfer", "r2d2", "versa", "snail", "mann"}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)
IMAGES = DatasetSpec(modality="image", example_shape=(3, 16, 16), dtype="uint8", mean=MEAN, std=STD, train_classes=8)
VECTORS = DatasetSpec(
    modality="vector", example_shape=(7,), dtype="float32", mean=(1.0,) * 7, std=(2.0,) * 7, train_classes=8
)


def saved(folder: Path, learner: str, spec: DatasetSpec, backbone: str) -> tuple[Learner, Path]:
    """A bundle of a learner whose running batch-norm statistics are not the initial ones."""
    described = LearnerSpec(learner=learner, backbone=backbone)
    made = make_learner(described, spec, seed=1, way=5)
    random = torch.Generator().manual_seed(2)
    for buffer in made.backbone.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=random) + 0.5)
    save_bundle(folder / "bundle", made, described, episode=EpisodeShape(5, 1, 15), lineage={"dataset_digest": "0"})
    return made.eval(), folder / "bundle"


def plain_layers(learner: Learner, x: torch.Tensor) -> np.ndarray:
    """The features of an mlp by torch's own functions, in fp64."""
    weights = {name: value.double() for name, value in learner.backbone.state_dict().items()}
    mean, std = learner.mean.double(), learner.std.double()
    hidden = (x.double() - mean) / std
    for number in range(len(learner.backbone.config.hidden)):
        weight, bias = (weights[f"layers.{number}.{part}"] for part in ("weight", "bias"))
        hidden = torch.relu(torch.nn.functional.linear(hidden, weight, bias))
    return hidden.detach().numpy()


@pytest.mark.parametrize(
    ("learner", "spec", "backbone"),
    [
        *((name, IMAGES, "conv4") for name in learner_names() if name not in {"mann", "snail"}),
        ("protonet", IMAGES, "resnet12"),
        ("protonet", VECTORS, "mlp"),
        ("snail", VECTORS, "mlp"),
        ("mann", VECTORS, "mlp"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.modality,
)
def test_other_runtimes_find_the_learners_features(
    tmp_path: Path, learner: str, spec: DatasetSpec, backbone: str
) -> None:
    made, bundle = saved(tmp_path, learner, spec, backbone)
    assert has_embedding(made) == (learner in EMBEDDING)
    if learner not in EMBEDDING:
        with pytest.raises(UsageError, match="no embedding to export"):
            export_backbone(bundle, tmp_path / "exports")
        assert not (tmp_path / "exports").exists()
        return
    described = export_backbone(bundle, tmp_path / "exports")
    session = onnxruntime.InferenceSession(tmp_path / "exports" / ONNX_NAME)
    program = torch.export.load(tmp_path / "exports" / TORCH_NAME).module()
    for count in (1, 2, 9):
        x = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, *spec.example_shape)))
        x = x.to(torch.uint8) if spec.dtype == "uint8" else x.float() / 100
        with torch.no_grad():
            expected = made.embed(x).numpy()
            found = session.run(["features"], {"x": x.numpy()})[0]
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
            np.testing.assert_allclose(program(x).numpy(), expected, rtol=0, atol=1e-5 * scale)
        assert found.shape == (count, described.feature_size)


def test_an_mlps_features_are_those_of_plain_layers_in_fp64(tmp_path: Path) -> None:
    made, bundle = saved(tmp_path, "protonet", VECTORS, "mlp")
    export_backbone(bundle, tmp_path / "exports")
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "exports" / ONNX_NAME)
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], plain_layers(made, x), atol=1e-5)


def test_nearest_prototypes_of_exported_features_are_the_models_answers(tmp_path: Path) -> None:
    _, bundle = saved(tmp_path, "protonet", IMAGES, "conv4")
    export_backbone(bundle, tmp_path / "exports")
    session = onnxruntime.InferenceSession(tmp_path / "exports" / ONNX_NAME)
    images = np.random.default_rng(0).integers(0, 256, (25, 3, 16, 16)).astype(np.uint8)
    features = session.run(None, {"x": images})[0]
    prototypes = features[:15].reshape(5, 3, -1).mean(axis=1)
    logits = -((features[15:, None] - prototypes) ** 2).sum(axis=-1)
    found = load_model(bundle).predict(images[:15], np.repeat(np.arange(5), 3), images[15:])
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found.probabilities, probabilities / probabilities.sum(axis=1, keepdims=True), atol=1e-4)


def test_no_export_holds_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bundle = saved(tmp_path, "protonet", IMAGES, "conv4")
    export_backbone(bundle, tmp_path / "exports")
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {ONNX_NAME, TORCH_NAME, DESCRIPTION_NAME}
    with zipfile.ZipFile(tmp_path / "exports" / TORCH_NAME) as archive:
        assert {archive.getinfo(name).file_size for name in archive.namelist() if "sample_inputs" in name} == {0}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    torch.export.load(tmp_path / "exports" / TORCH_NAME)


def test_the_description_says_what_the_files_are(tmp_path: Path) -> None:
    _, bundle = saved(tmp_path, "protonet", IMAGES, "conv4")
    described = export_backbone(bundle, tmp_path / "exports")
    written = ExportDescription.model_validate_json((tmp_path / "exports" / DESCRIPTION_NAME).read_text())
    assert written == described
    assert (written.learner, written.backbone, written.input) == ("protonet", "conv4", IMAGES)
    assert written.bundle_digest == verify_bundle(bundle)
    assert set(written.largest_difference) == {ONNX_NAME, TORCH_NAME}
    content = {name: (tmp_path / "exports" / name).read_bytes() for name in (ONNX_NAME, TORCH_NAME)}
    assert written.sha256 == {name: hashlib.sha256(value).hexdigest() for name, value in content.items()}


def test_features_that_differ_are_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bundle = saved(tmp_path, "protonet", VECTORS, "mlp")
    right = export._onnx_reader
    for wrong, words in ((1 + 1e-4, r"\d"), (float("nan"), "nan")):
        monkeypatch.setattr(export, "_onnx_reader", lambda file, wrong=wrong: lambda x: right(file)(x) * wrong)
        with pytest.raises(MetalearnError, match=f"backbone.onnx: its features differ by {words}"):
            export_backbone(bundle, tmp_path / "exports")
    monkeypatch.setattr(export, "_onnx_reader", lambda file: 1 / 0)
    with pytest.raises(MetalearnError, match=r"cannot be exported: .*division by zero"):
        export_backbone(bundle, tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_a_folder_that_is_taken_and_a_damaged_bundle_are_refused(tmp_path: Path) -> None:
    _, bundle = saved(tmp_path, "protonet", IMAGES, "conv4")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="there is something already"):
        export_backbone(bundle, tmp_path / "taken")
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"
    content = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**content, "learner": "maml"}))
    with pytest.raises(MetalearnError, match="damaged"):
        export_backbone(bundle, tmp_path / "exports")
    assert not (tmp_path / "exports").exists()
