import base64
import io

import numpy as np
from PIL import Image

from metalearn_core.report.pictures import LARGEST_SIDE, Album, address


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text.split(",")[1])))


def test_a_grey_picture_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 20), dtype=np.uint8)
    text = address(pixels)
    assert text.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(decoded(text)), pixels[0])


def test_a_coloured_picture_is_small_and_alike():
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (200, 1)), np.tile(ramp, (200, 1)).T, np.full((200, 200), 90, np.uint8)])
    text = address(pixels)
    assert text.startswith("data:image/webp;base64,")
    assert len(text) < 4000
    found = decoded(text)
    assert found.size == (LARGEST_SIDE, LARGEST_SIDE)
    expected = Image.fromarray(pixels.transpose(1, 2, 0)).resize((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    assert np.abs(np.asarray(found.convert("RGB")).astype(int) - np.asarray(expected)).mean() < 5


def test_an_album_turns_its_pictures_and_says_so(content, dataset, album):
    [upright], [turned] = album.of_class(11), album.of_class(11, 1)
    np.testing.assert_array_equal(np.asarray(decoded(turned.address)), np.rot90(np.asarray(decoded(upright.address))))
    assert turned.name == f"{upright.name} turned 90°"
    row = int(dataset.class_offset[11]) + 4
    np.testing.assert_array_equal(np.asarray(decoded(album.of_row(row, 11).address)), dataset.examples[row, 0])
    assert len(album.of_class(11, 0, 100)) == content.manifest.classes[11].count


def test_without_a_dataset_there_are_names_but_no_pictures(content):
    album = Album(content.manifest, None)
    assert (album.of_class(3), album.of_row(3, 0)) == ((), None)
    assert album.name(3) == content.manifest.classes[3].name
