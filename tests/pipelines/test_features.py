"""Features that a user computed elsewhere, from a Parquet file to a prediction."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metalearn_core.bundle import save_bundle
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.learners import LearnerSpec
from metalearn_core.model import load_model
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

SIZE, CLASSES, EXAMPLES = 6, 18, 8


def vectors(classes: int = CLASSES, examples: int = EXAMPLES) -> tuple[np.ndarray, list[str]]:
    """Return features of classes with centres of their own, far apart on an odd scale."""
    random = np.random.default_rng(0)
    centres = random.normal(50, 30, (classes, 1, SIZE))
    features = (centres + random.normal(0, 8, (classes, examples, SIZE))).reshape(-1, SIZE).astype(np.float32)
    return features, [f"class{number:02d}" for number in range(classes) for _ in range(examples)]


def write(path: Path, features: np.ndarray, **columns: object) -> Path:
    kind = pa.list_(pa.float32(), SIZE)  # numpy's rows as Arrow has them: lists of one length
    pq.write_table(pa.table({"features": pa.array(list(features), kind), **columns}), path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    folder = tmp_path_factory.mktemp("features")
    features, labels = vectors()
    source = write(folder / "features.parquet", features, label=labels)
    build_dataset(str(source), folder / "dataset", BuildOptions(ratios=(0.5, 0.25, 0.25)), workers=1)
    return EpisodeDataset.open(folder / "dataset")


@pytest.mark.parametrize("backbone", ["mlp", "identity"])
@pytest.mark.parametrize("learner", ["protonet", "maml", "transfer"])
def test_every_learner_goes_from_features_to_a_prediction(
    learner: str, backbone: str, dataset: EpisodeDataset, tmp_path: Path
) -> None:
    spec = LearnerSpec(learner=learner, backbone=backbone)
    plan = TrainingPlan(way=3, shot=2, query=3, episodes=60, validations=1, validation_episodes=10)
    result = fit(spec, dataset, plan, checkpoint_dir=tmp_path / "checkpoints")
    nothing_to_learn = (learner, backbone) == ("protonet", "identity")
    assert (result.episodes == 0) == nothing_to_learn
    assert evaluate(result.learner, dataset, Protocol(way=3, shot=2, query=3, episodes=30)).accuracy > 0.8
    save_bundle(tmp_path / "bundle", result.learner, spec, episode=plan.shape, lineage={"dataset_digest": "d"})
    features, labels = vectors()
    few = [row for row in range(3 * EXAMPLES) if row % EXAMPLES < 2]
    others = [row for row in range(3 * EXAMPLES) if row % EXAMPLES >= 2]
    found = load_model(tmp_path / "bundle").predict(features[few], [labels[row] for row in few], features[others])
    assert np.mean([label == labels[row] for label, row in zip(found.labels, others, strict=True)]) > 0.8


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str]:
    from pipelines.command_line import main

    monkeypatch.setattr(sys, "argv", ["metalearn", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return end.value.code, captured.out if end.value.code in (0, None) else captured.err


def test_predict_takes_vectors_from_parquet(
    dataset: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features, labels = vectors(3)
    support = write(tmp_path / "support.parquet", features[::4], **{"class": labels[::4]})
    named = write(tmp_path / "named.parquet", features, id=[f"row{n}" for n in range(len(features))])
    place = ("--workdir", tmp_path / "work", "--json")
    train = ("--learner", "transfer", "--backbone", "identity", "--way", 3, "--query", 3, "--episodes", 5)
    status, output = run(monkeypatch, capsys, "train", dataset.folder, *train, "-o", tmp_path / "model", *place)
    assert not status, output
    asked = ("predict", tmp_path / "model", "--support")
    status, output = run(monkeypatch, capsys, *asked, support, "--query", named, *place)
    found = json.loads(output)["predictions"]
    assert [entry["file"] for entry in found] == [f"row{n}" for n in range(len(features))]
    assert np.mean([entry["label"] == label for entry, label in zip(found, labels, strict=True)]) > 0.9
    for arguments, message in (
        ((named, "--query", named), "no column 'class' or 'label'"),
        ((tmp_path, "--query", named), "this model takes vectors, from a Parquet file"),
    ):
        status, error = run(monkeypatch, capsys, *asked, *arguments, *place)
        assert status == 1
        assert message in error
