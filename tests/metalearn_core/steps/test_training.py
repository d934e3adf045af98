from pathlib import Path

import numpy as np

from metalearn_core.bundle import read_training_images
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.fingerprints import fingerprints
from metalearn_core.data.leakage import check_leakage
from metalearn_core.data.subset import split_hashes
from metalearn_core.steps.training import TrainingRequest, train_bundle


def test_a_bundle_knows_the_images_that_it_was_trained_on(small_dataset: EpisodeDataset, tmp_path: Path) -> None:
    request = TrainingRequest(way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=8)
    item = {"learner": "protonet", "backbone": "mlp", "options": {}, "backbone_options": {"hidden": [8]}}
    train_bundle(
        str(small_dataset.folder), item, request, str(tmp_path / "bundle"), checkpoints=str(tmp_path / "checkpoints")
    )
    images = read_training_images(tmp_path / "bundle")
    assert np.array_equal(images, np.unique(fingerprints(split_hashes(small_dataset, "train"))))
    train = small_dataset.manifest.of_split("train")
    seen = check_leakage(small_dataset, "train", set(), images)
    assert seen.class_digests == tuple(entry.digest for entry in train)
