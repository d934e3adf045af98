"""Small sources and datasets that the tests of the data layer share."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import BuildOptions

DrawImage = Callable[[str, int], Image.Image]


def class_image(name: str, number: int) -> Image.Image:
    """Return picture `number` of a class: a pattern that belongs to the class, and a little noise."""
    pattern = np.random.default_rng(list(name.encode())).integers(30, 220, (16, 16))
    noise = np.random.default_rng([number, *name.encode()]).integers(-8, 9, (16, 16))
    return Image.fromarray((pattern + noise).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write_classes(root: Path, names: list[str], count: int) -> Path:
    """Write `count` pictures for each class into its folder below `root`."""
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            class_image(name, number).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six domains of four classes, eight pictures each."""
    names = [f"domain{d}/class{c}" for d in range(6) for c in range(4)]
    return write_classes(tmp_path_factory.mktemp("source"), names, 8)


@pytest.fixture(scope="session")
def dataset_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("datasets") / "dataset"
    build_dataset(str(image_folder), out, BuildOptions(image_size=12, rotations="train"))
    return out


@pytest.fixture(scope="session")
def dataset(dataset_folder: Path) -> Iterator[EpisodeDataset]:
    yield EpisodeDataset.open(dataset_folder)
