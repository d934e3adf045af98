"""A dataset in memory whose classes are known with difficulty, and learners that were not trained."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest
from metalearn_core.learners import LearnerSpec, make_learner

EXAMPLES = 12
DOMAINS = {"train": [("old", 6)], "validation": [("old", 5)], "test": [("wide", 9), ("broad", 7), ("tiny", 2)]}


@pytest.fixture(scope="session")
def dataset():
    """18 test classes in three domains, one too small for five ways; pictures are a pattern under much noise."""
    random = np.random.default_rng(0)
    entries, pictures = [], []
    for split, domains in DOMAINS.items():
        for domain, count in domains:
            for number in range(count):
                pattern = np.kron(random.normal(128, 40, (1, 4, 4)), np.ones((1, 4, 4)))
                own = np.clip(pattern + random.normal(0, 70, (EXAMPLES, 1, 16, 16)), 0, 255).astype(np.uint8)
                pictures.append(own)
                entries.append(
                    ClassEntry(
                        id=len(entries),
                        name=f"{domain}/{number}",
                        domain=domain,
                        split=split,
                        count=EXAMPLES,
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


@pytest.fixture
def protonet(dataset):
    return make_learner(LearnerSpec(learner="protonet", backbone_options={"width": 16}), dataset.spec, seed=1)


@pytest.fixture
def maml(dataset):
    return make_learner(LearnerSpec(learner="maml", backbone_options={"width": 8}), dataset.spec, way=5, seed=1)
