"""What people hold in their hands becomes the examples of a dataset."""

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.errors import UsageError
from metalearn_core.examples import to_examples

SPEC = DatasetSpec(modality="image", example_shape=(1, 8, 8), dtype="uint8", mean=(0.5,), std=(0.2,), train_classes=9)


def test_an_image_of_floats_is_scaled_and_one_out_of_range_is_named() -> None:
    bright, wild = (Image.fromarray(np.full((8, 8), value, np.float32)) for value in (0.8, 200))
    assert (to_examples([bright], SPEC, "support") == 204).all()
    with pytest.raises(UsageError, match=r"support\[1\]: the image cannot be used: floating-point pixels from 200"):
        to_examples([bright, wild], SPEC, "support")
