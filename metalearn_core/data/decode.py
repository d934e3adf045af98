"""From the bytes of an image file to pixels; imported by every decoding worker, so it imports little."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
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

    The image stays as it is.
    """
    pixels = _flatten(ImageOps.exif_transpose(image), color)
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
    """Return an image with 8 bits a channel and no transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        scaled = values if image.mode == "F" else values / 257
        image = Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    elif image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    mode = _CHANNELS[color]
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that is not supported"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
