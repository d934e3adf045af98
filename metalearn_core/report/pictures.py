"""Examples as pictures that stand inside a page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.manifest import Manifest
from metalearn_core.data.sampler import gather_examples

LARGEST_SIDE = 64
WEBP_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """One example, by its `data:` address, with the name of its class."""

    address: str
    name: str

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return the picture as (h, w) or (h, w, 3)."""
        content = base64.b64decode(self.address.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(content)))


class Album:
    """The pictures of a dataset.

    Args:
        manifest: names the classes.
        dataset: has the examples; None, or one of vectors: there are no pictures.
    """

    def __init__(self, manifest: Manifest, dataset: EpisodeDataset | None) -> None:
        self._manifest = manifest
        self._dataset = dataset if dataset is not None and dataset.spec.modality == "image" else None

    def name(self, class_id: int, rotation: int = 0) -> str:
        """Return the name of a class, with the angle where it is turned."""
        turned = f" turned {90 * rotation}°" if rotation else ""
        return self._manifest.classes[class_id].name + turned

    def of_class(self, class_id: int, rotation: int = 0, count: int = 1) -> tuple[Picture, ...]:
        """Return the first examples of a class, turned."""
        if self._dataset is None:
            return ()
        entry = self._manifest.classes[class_id]
        first = int(self._dataset.class_offset[class_id])
        rows = torch.arange(first, first + min(count, entry.count))
        examples = gather_examples(self._dataset.examples, rows, torch.full_like(rows, rotation))
        return tuple(Picture(address(example.numpy()), self.name(class_id, rotation)) for example in examples)

    def of_row(self, row: int, class_id: int, rotation: int = 0) -> Picture | None:
        """Return the example at a row of the dataset's store, turned."""
        if self._dataset is None:
            return None
        rows = torch.tensor([row])
        [example] = gather_examples(self._dataset.examples, rows, torch.tensor([rotation]))
        return Picture(address(example.numpy()), self.name(class_id, rotation))


def address(example: npt.NDArray[np.uint8]) -> str:
    """Return an image (c, h, w), uint8, as a `data:` address, with sides of at most 64 pixels.

    A grey one is a PNG: it is small as it is. A coloured one is a WebP, a fifth of the size.
    """
    grey = len(example) == 1
    image = Image.fromarray(example[0] if grey else np.ascontiguousarray(example.transpose(1, 2, 0)))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    content, kind = io.BytesIO(), "png" if grey else "webp"
    image.save(content, kind, **({"optimize": True} if grey else {"quality": WEBP_QUALITY}))
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()
