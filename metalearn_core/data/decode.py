"""From the bytes of an image file to pixels; imported by every decoding worker, so it imports little."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metalearn_core.data.sources.contract import Color, Example, GreyTest, Item, Loader, UndecodableError
from metalearn_core.errors import UsageError

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_CHANNELS = {"grey": "L", "rgb": "RGB"}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "F", "I"})
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})  # formats whose images of mode I have 16 bits, whatever Pillow keeps them in
_STRIP_PIXELS = 1_000_000


@dataclass(frozen=True)
class Decoded:
    """What became of a chunk of items.

    Attributes:
        examples: (n, *x) those that could be read, in order; None where there is none.
        hashes: the sha256 of each one's values.
        keys: the key of each.
        failures: (key, reason) of the others.
    """

    examples: Example | None
    hashes: list[bytes]
    keys: list[str]
    failures: list[tuple[str, str]]


def decode_items(work: tuple[Loader, Sequence[Item]]) -> Decoded:
    """Decode a chunk of items; what cannot be read is reported, never raised."""
    loader, items = work
    examples, hashes, keys, failures = [], [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in items:
            try:
                example = loader(item)
            except UndecodableError as error:
                failures.append((item.key, str(error)))
                continue
            examples.append(example)
            hashes.append(hashlib.sha256(example.tobytes()).digest())
            keys.append(item.key)
    return Decoded(np.stack(examples) if examples else None, hashes, keys, failures)


def all_grey(work: tuple[GreyTest, Sequence[Item]]) -> bool:
    """Whether each image of a chunk has a single channel."""
    is_grey, items = work
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return all(is_grey(item) for item in items)


def decode_image(file: Path | str | bytes | BinaryIO, image_size: int, color: Color) -> Example:
    """Return an image file as uint8 (c, image_size, image_size), upright, on white where it is transparent.

    Raises:
        UndecodableError: it is empty, truncated, too large or no image.
    """
    with opened_image(file) as image:
        image.draft(None, (2 * image_size, 2 * image_size))  # a large JPEG is decoded at a fraction of its size
        return standard_image(image, image_size, color)


@contextmanager
def opened_image(file: Path | str | bytes | BinaryIO) -> Iterator[Image.Image]:
    """Open an image; its size is known, and its pixels are decoded when they are asked for.

    Raises:
        UndecodableError: it is empty, truncated, too large or no image; also for what the block does with it.
    """
    try:
        with _open(file) as image:
            yield image
    except (UndecodableError, UsageError):
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise UndecodableError(_reason(error)) from None


def standard_image(image: Image.Image, image_size: int, color: Color) -> Example:
    """Return an image as uint8 (c, image_size, image_size), upright, on white where it is transparent.

    The image stays as it is. Of pixels of more than 8 bits, those of 16 are scaled, whole numbers of 32 are taken as
    they are in 0 … 255, and floats are scaled from 0 … 1.

    Raises:
        UndecodableError: pixels of 32 bits are out of that range.
    """
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS)
    upright = ImageOps.exif_transpose(image)
    if sixteen_bits or image.mode in {"I", "F"}:
        upright = _of_bytes(upright, _from_sixteen_bits if sixteen_bits else _FROM_32_BITS[image.mode])
    pixels = _flatten(upright, color)
    if pixels.size != (image_size, image_size):
        pixels = pixels.resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    array = np.asarray(pixels)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def is_grey_image(file: Path | str | bytes | BinaryIO) -> bool:
    """Whether an image file has a single channel (or a palette of greys); True where it cannot be read."""
    try:
        with _open(file) as image:
            if image.mode == "P" and image.palette is not None:
                colours = np.frombuffer(image.convert("RGB").tobytes(), np.uint8).reshape(-1, 3)
                return bool((colours == colours[:, :1]).all())
            return image.mode in _GREY_MODES or image.mode.startswith("I;16")
    except Exception:  # reported when it is decoded
        return True


def _open(file: Path | str | bytes | BinaryIO) -> Image.Image:
    """Open an image and look at its size before anything is decoded."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise UndecodableError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise UndecodableError(f"{width} × {height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels")
    return image


def _flatten(image: Image.Image, color: Color) -> Image.Image:
    """Return an image with 8 bits a channel without its transparency, in a mode of grey or colour."""
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    mode = _CHANNELS[color]
    return image if image.mode == mode else image.convert(mode)


def _of_bytes(image: Image.Image, to_bytes: Callable[[Example], Example]) -> Image.Image:
    """Return an image of wide pixels with one byte for each, a strip at a time: a large one has few copies."""
    pixels = np.empty((image.height, image.width), np.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        pixels[top:bottom] = to_bytes(np.asarray(image.crop((0, top, image.width, bottom))))
    return Image.fromarray(pixels)


def _from_sixteen_bits(values: Example) -> Example:
    scaled: Example = (values.astype(np.uint32) + 128) // 257  # the nearest: 257 is odd, so that none lies between two
    return scaled


def _from_whole_numbers(values: Example) -> Example:
    if values.min() < 0 or values.max() > 255:
        raise UndecodableError(f"32-bit pixels from {values.min()} to {values.max()}, expected 0 to 255")
    return values


def _from_floats(values: Example) -> Example:
    if not (values.min() >= 0 and values.max() <= 1):  # nor NaN
        raise UndecodableError(f"floating-point pixels from {values.min():g} to {values.max():g}, expected 0 to 1")
    scaled: Example = np.rint(values * 255)
    return scaled


_FROM_32_BITS = {"I": _from_whole_numbers, "F": _from_floats}


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that is not supported"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
