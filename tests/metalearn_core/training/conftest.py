import pytest
import torch

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions, ClassEntry, DatasetSpec, Manifest

SPLITS = {"train": 8, "validation": 5, "test": 5}


def tiny_dataset(count=6, size=8, name="tiny"):
    """An episode dataset in memory: classes are fixed random pictures, their examples those with noise."""
    generator = torch.Generator().manual_seed(0)
    entries, pictures = [], []
    for split, classes in SPLITS.items():
        for number in range(classes):
            rotations = (0, 1, 2, 3) if split == "train" else (0,)
            entries.append(
                ClassEntry(
                    id=len(entries),
                    name=f"{split}{number}",
                    domain="one",
                    split=split,
                    count=count,
                    shard=0,
                    row_group=number,
                    rotations=rotations,
                    digest=f"{split}{number}",
                )
            )
            centre = torch.rand(1, 1, size, size, generator=generator)
            pictures.append(centre + 0.3 * torch.rand(count, 1, size, size, generator=generator))
    examples = (torch.cat(pictures) / 1.3 * 255).to(torch.uint8)
    spec = DatasetSpec(
        modality="image", example_shape=(1, size, size), dtype="uint8", mean=(0.5,), std=(0.25,), train_classes=32
    )
    manifest = Manifest(
        digest=name.ljust(32, "0"), source="memory", spec=spec, options=BuildOptions(), classes=entries, shards=()
    )
    return EpisodeDataset(None, manifest, examples)


@pytest.fixture(scope="session")
def dataset():
    return tiny_dataset()


@pytest.fixture(scope="session")
def make_dataset():
    return tiny_dataset
