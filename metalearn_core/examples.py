"""What people hold in their hands - arrays, PIL images, file paths - as examples that a learner takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from metalearn_core.data.decode import decode_image, standard_image
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.data.sources.contract import Color, UndecodableError
from metalearn_core.errors import UsageError

Array = npt.NDArray[Any]
_CHANNELS = (1, 3, 4)


def to_examples(values: Any, spec: DatasetSpec, name: str) -> Array:
    """Return examples (n, *x) of the dataset's shape, as the build would have stored them.

    Args:
        values: images as one array (n, c, h, w), (n, h, w) or (n, h, w, c), uint8 or floats in 0 … 1, or a sequence of
            arrays, PIL images or file paths; for vectors an array (n, d). Images of another size or colour are
            brought to the dataset's as the build does.
        spec: of the dataset that the learner comes from.
        name: of the argument, for errors.

    Returns:
        float32 in 0 … 1 where floats came in at the dataset's own size, else the dataset's dtype.

    Raises:
        UsageError: nothing there, a wrong shape, values out of range or not finite, or a file that is no image.
    """
    if isinstance(values, str | Path | bytes | Image.Image):
        raise UsageError(f"{name}: expected a sequence of examples, got a single {type(values).__name__}")
    if hasattr(values, "detach"):  # a torch tensor, from whatever device
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        values = list(values)
    if len(values) == 0:
        raise UsageError(f"{name}: expected at least one example, got none")
    if spec.modality == "vector":
        return _vectors(values, spec, name)
    if isinstance(values, np.ndarray):
        return _images(values, spec, name)
    if not all(isinstance(value, str | Path | Image.Image) for value in values):
        return _each_array(values, spec, name)
    return np.stack([_picture(value, spec, f"{name}[{number}]") for number, value in enumerate(values)])


def _vectors(values: Any, spec: DatasetSpec, name: str) -> Array:
    array = _array(values, name)
    wanted = spec.example_shape[0]
    if array.ndim != 2 or array.shape[1] != wanted:
        raise UsageError(f"{name}: expected (n, {wanted}), got {_shape(array)}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    _finite(array, name)
    return array


def _each_array(values: Sequence[Any], spec: DatasetSpec, name: str) -> Array:
    """Bring a sequence of examples, each in its own way, to the dataset's shape."""
    parts = []
    for number, value in enumerate(values):
        place = f"{name}[{number}]"
        if isinstance(value, str | Path | Image.Image):
            parts.append(_picture(value, spec, place)[None])
        else:
            parts.append(_images(_array(value, place)[None], spec, place, single=True))
    if any(part.dtype != np.uint8 for part in parts):
        parts = [part / np.float32(255) if part.dtype == np.uint8 else part for part in parts]
    return np.concatenate(parts)


def _images(array: Array, spec: DatasetSpec, name: str, *, single: bool = False) -> Array:
    """Return images (n, c, h, w) from an array with or without channels, before or behind height and width."""
    lead, shape = ("", array.shape[1:]) if single else ("n, ", array.shape)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4 or not (array.shape[1] in _CHANNELS or array.shape[3] in _CHANNELS):
        c, h, w = spec.example_shape
        raise UsageError(
            f"{name}: expected ({lead}{c}, {h}, {w}), ({lead}{h}, {w}, {c}) or ({lead}{h}, {w}), got {_words(shape)}"
        )
    elif array.shape[1:] != spec.example_shape and array.shape[3] in _CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if 0 in array.shape:
        raise UsageError(f"{name}: expected images with pixels, got {_words(shape)}")
    array = _in_range(array, name)
    if array.shape[1:] == spec.example_shape:
        return np.ascontiguousarray(array)
    if array.dtype != np.uint8:
        array = np.rint(array * 255).astype(np.uint8)
    return np.stack([_picture(_pil(image), spec, name) for image in array])


def _in_range(array: Array, name: str) -> Array:
    """Return uint8 as it is, and everything else as float32 in 0 … 1 (whole numbers in 0 … 255 as uint8)."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UsageError(f"{name}: expected uint8, or floats in 0 … 1, got {array.dtype}")
    _finite(array, name)
    whole = np.issubdtype(array.dtype, np.integer)
    low, high = array.min(), array.max()
    if low < 0 or high > (255 if whole else 1):
        wanted = "whole numbers in 0 … 255" if whole else "floats in 0 … 1 (or uint8 in 0 … 255)"
        raise UsageError(f"{name}: expected {wanted}, got values from {low:g} to {high:g}")
    return array.astype(np.uint8 if whole else np.float32)


def _pil(image: Array) -> Image.Image:
    """Return a PIL image of uint8 (c, h, w)."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _picture(value: str | Path | Image.Image, spec: DatasetSpec, name: str) -> Array:
    """Return one picture as uint8 (c, h, w), by the build's own steps."""
    channels, size, _ = spec.example_shape
    color: Color = "grey" if channels == 1 else "rgb"
    if isinstance(value, Image.Image):
        try:
            return standard_image(value, size, color)
        except UndecodableError as error:
            raise UsageError(f"{name}: the image cannot be used: {error}") from None
    if not Path(value).is_file():
        raise UsageError(f"{name}: there is no file {value}")
    try:
        return decode_image(Path(value), size, color)
    except UndecodableError as error:
        raise UsageError(f"{name}: {value} cannot be read: {error}") from None


def _array(values: Any, name: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(f"{name}: expected examples of one shape, got several") from None
    if array.dtype == object or array.dtype.kind in "USV":
        raise UsageError(f"{name}: expected numbers, PIL images or file paths, got {array.dtype}")
    return array


def _finite(array: Array, name: str) -> None:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        where = int(np.argwhere(~np.isfinite(array))[0][0])
        raise UsageError(f"{name}: expected finite numbers, got NaN or infinity in example {where}")


def _shape(array: Array) -> str:
    return _words(array.shape)


def _words(shape: Sequence[int]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
