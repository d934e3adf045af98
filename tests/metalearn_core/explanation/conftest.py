"""Episodes and untrained learners in fp64, and a dataset that lies in memory."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest
from metalearn_core.learners import LEARNERS, LearnerSpec, make_learner

WAY, SHOT = 3, 2
EXAMPLES = 6
CLASSES = {"train": 3, "validation": 3, "test": 5}


@pytest.fixture(scope="session")
def dataset():
    """Few pictures of 8 × 8; the first test class counts turned, too."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (EXAMPLES * sum(CLASSES.values()), 1, 8, 8), dtype=np.uint8)
    names = [(split, number) for split, count in CLASSES.items() for number in range(count)]
    entries = tuple(
        ClassEntry(
            id=number,
            name=f"{split}/{own}",
            domain=split,
            split=split,
            count=EXAMPLES,
            shard=0,
            row_group=number,
            rotations=(0, 1) if (split, own) == ("test", 0) else (0,),
            digest=hashlib.sha256(bytes([number])).hexdigest(),
        )
        for number, (split, own) in enumerate(names)
    )
    spec = DatasetSpec(
        modality="image", example_shape=(1, 8, 8), dtype="uint8", mean=(0.5,), std=(0.3,), train_classes=3
    )
    manifest = Manifest(
        digest="0" * 32, source="tests", spec=spec, options=BuildOptions(image_size=8), classes=entries, shards=()
    )
    return EpisodeDataset(Path("nowhere"), manifest, torch.from_numpy(pictures))


@pytest.fixture
def make_double(dataset):
    """Return a function that makes a learner in fp64, its weights and running statistics away from where they start."""

    def make(name, **options):
        spec = LearnerSpec(learner=name, options=options, backbone_options={"width": 4, "blocks": 2})
        learner = make_learner(spec, dataset.spec, way=WAY, seed=1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(2)
        for parameter in learner.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for buffer in learner.backbone.buffers():
            buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
        return learner.eval()

    return make


@pytest.fixture(params=sorted(LEARNERS))
def any_learner(request, make_double):
    """Each learner, made for support sets of two examples per class where it is made for a shot."""
    fixed = "shot" in LEARNERS[request.param].Config.model_fields
    return make_double(request.param, **({"shot": SHOT} if fixed else {}))


@pytest.fixture
def support(dataset):
    """Two support sets of three classes, two examples each: (2, 6, 1, 8, 8) and (2, 6)."""
    rows = torch.tensor([[0, 6, 12, 1, 7, 13], [20, 26, 32, 21, 27, 33]])
    return dataset.examples[rows].double() / 255, torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)


@pytest.fixture
def query(dataset):
    return dataset.examples[[2, 8, 14, 3, 9]].double() / 255
