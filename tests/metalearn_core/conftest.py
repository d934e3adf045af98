"""What the tests of tracking and registry share: a small dataset, bundles of good and bad learners, a database."""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from metalearn_core import tracking
from metalearn_core.bundle import save_bundle
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest, Split
from metalearn_core.evaluation.evaluate import Protocol
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.registry import RegisteredVersion, register_bundle

SIZE = 12
SPLIT_SIZES: dict[Split, int] = {"train": 6, "validation": 5, "test": 8}
NOISY_EXAMPLES = 12
NOISY_DOMAINS: dict[Split, list[tuple[str, int]]] = {
    "train": [("old", 6)],
    "validation": [("old", 5)],
    "test": [("wide", 9), ("broad", 7), ("tiny", 2)],
}
PROTOCOL = Protocol(split="test", way=3, shot=1, query=3, episodes=60)


def picture(name: str, number: int, size: int = SIZE) -> Image.Image:
    """Return a picture of a class: its pattern with so much noise that a classifier has something to do."""
    pattern = np.random.default_rng(list(name.encode())).integers(0, 256, (size, size))
    noise = np.random.default_rng([number, *name.encode()]).normal(0, 60, (size, size))
    return Image.fromarray(np.clip(pattern + noise, 0, 255).astype(np.uint8))


def make_dataset(folder: Path, size: int = SIZE) -> EpisodeDataset:
    pairs: list[tuple[str, Split]] = [
        (f"{split}{number}", split) for split, count in SPLIT_SIZES.items() for number in range(count)
    ]
    for name, _ in pairs:
        (folder / "source" / name).mkdir(parents=True)
        for number in range(8):
            picture(name, number, size).save(folder / "source" / name / f"{number}.png")
    options = BuildOptions(image_size=size, split_file=tuple(pairs), rotations="none")
    build_dataset(str(folder / "source"), folder / "dataset", options, workers=1)
    return EpisodeDataset.open(folder / "dataset")


def make_bundle(
    path: Path,
    dataset: EpisodeDataset,
    *,
    seed: int = 0,
    guesses: bool = False,
    learner: str = "protonet",
    seen: Sequence[str] | None = None,
    images: Sequence[bytes] | None = None,
) -> Path:
    """Save a learner with random weights, which is well above chance here; or one that guesses: all weights zero."""
    spec = LearnerSpec(learner=learner, backbone="mlp", backbone_options={"hidden": (32,)})
    made = make_learner(spec, dataset.spec, way=3, seed=seed)
    if guesses:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
    classes = [entry.digest for entry in dataset.manifest.of_split("train")] if seen is None else list(seen)
    lineage = {"dataset_digest": dataset.digest, "seed": seed, "training_class_digests": classes}
    save_bundle(path, made, spec, episode=EpisodeShape(3, 1, 3), lineage=lineage, training_images=images)
    return path


def evaluation(accuracy: float = 0.75) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci95": 0.01, "ece": 0.02, "protocol": PROTOCOL.model_dump(mode="json")}


def new_run() -> str:
    return tracking.start_child(
        tracking.open_parent_run(tracking.DEFAULT_EXPERIMENT, "pipeline", "pipeline"), "learner"
    )


def register(bundle: Path, name: str, run_id: str | None = None) -> RegisteredVersion:
    return register_bundle(
        bundle, name, run_id=run_id or new_run(), evaluation=evaluation(), lineage={"pipeline_run_id": "pipeline"}
    )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def install_champion(client: MlflowClient, name: str, bundle: Path) -> None:
    """Make a bundle the champion without asking the gate, which would refuse one that guesses."""
    client.set_registered_model_alias(name, "champion", register(bundle, name).version)


class Workshop:
    """The functions above, for test modules, which cannot import a conftest."""

    PROTOCOL = PROTOCOL
    aliases = staticmethod(aliases)
    evaluation = staticmethod(evaluation)
    free_port = staticmethod(free_port)
    install_champion = staticmethod(install_champion)
    make_bundle = staticmethod(make_bundle)
    make_dataset = staticmethod(make_dataset)
    new_run = staticmethod(new_run)
    picture = staticmethod(picture)
    register = staticmethod(register)


@pytest.fixture(scope="session")
def workshop() -> type[Workshop]:
    return Workshop


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a tracking database that a test module has for itself."""
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.prepare(uri, folder / "artifacts", tracking.DEFAULT_EXPERIMENT)
    return uri


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the module's database, which is also where tracking goes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return MlflowClient(database)


@pytest.fixture(scope="session")
def noisy_dataset() -> EpisodeDataset:
    """18 test classes in three domains, one too small for five ways; pictures are a pattern under much noise."""
    random = np.random.default_rng(0)
    entries, pictures = [], []
    for split, domains in NOISY_DOMAINS.items():
        for domain, count in domains:
            for number in range(count):
                pattern = np.kron(random.normal(128, 40, (1, 4, 4)), np.ones((1, 4, 4)))
                own = np.clip(pattern + random.normal(0, 70, (NOISY_EXAMPLES, 1, 16, 16)), 0, 255).astype(np.uint8)
                pictures.append(own)
                entries.append(
                    ClassEntry(
                        id=len(entries),
                        name=f"{domain}/{number}",
                        domain=domain,
                        split=split,
                        count=NOISY_EXAMPLES,
                        shard=0,
                        row_group=0,
                        rotations=(0, 1, 2, 3) if domain == "wide" and number < 3 else (0,),
                        digest=hashlib.sha256(own.tobytes()).hexdigest(),
                    )
                )
    spec = DatasetSpec(
        modality="image", example_shape=(1, 16, 16), dtype="uint8", mean=(0.5,), std=(0.28,), train_classes=6
    )
    manifest = Manifest(
        digest="0123456789abcdef" * 2,
        source="tests",
        spec=spec,
        options=BuildOptions(image_size=16),
        classes=tuple(entries),
        shards=(),
    )
    return EpisodeDataset(Path("nowhere"), manifest, torch.from_numpy(np.concatenate(pictures)))


@pytest.fixture(scope="module")
def good(workshop: type[Workshop], small_dataset: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.make_bundle(tmp_path_factory.mktemp("good") / "b", small_dataset, seed=1)


@pytest.fixture(scope="module")
def guessing(workshop: type[Workshop], small_dataset: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.make_bundle(tmp_path_factory.mktemp("bad") / "b", small_dataset, guesses=True)
