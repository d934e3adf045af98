"""Draws letters as small pictures; imported by every decoding worker, so it imports little."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metalearn_core.data.sources.contract import Color, Example, Item

RASTERISER = "glyphs-1"
ROTATION = math.radians(10)
SHEAR = 0.15
SCALES = (0.62, 0.86)
STRETCH = 0.12
SHIFT = 0.07
_OVERSAMPLING = 3
_FONT_SIZE = 96
_PAPER, _INK = 255, 0


@dataclass(frozen=True)
class Glyph:
    """Picture number `picture` of a character in a font file."""

    character: str
    font: str
    picture: int


@dataclass(frozen=True)
class GlyphLoader:
    """Draws glyphs in black on white."""

    image_size: int
    color: Color

    def __call__(self, item: Item) -> Example:
        """Return a picture (c, image_size, image_size)."""
        glyph: Glyph = item.place
        pixels = np.asarray(draw(glyph, self.image_size))
        return np.repeat(pixels[None], 3, axis=0) if self.color == "rgb" else pixels[None]


def draw(glyph: Glyph, image_size: int) -> Image.Image:
    """Return a character with the jitter of its picture number: rotation, shear, scale, stretch and shift."""
    mask = ink(glyph.character, glyph.font)
    turn, shear, scale, stretch, shift_x, shift_y = _jitter(f"{ord(glyph.character):x}/{glyph.picture}")
    canvas = image_size * _OVERSAMPLING
    angle, skew, stretching = ROTATION * turn, SHEAR * shear, 1 + STRETCH * stretch
    extent = SCALES[0] + (SCALES[1] - SCALES[0]) * (scale + 1) / 2
    zoom = extent * canvas / max(mask.size)
    cosine, sine = math.cos(angle), math.sin(angle)
    forward = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[zoom * stretching, zoom * skew], [0.0, zoom]])
    backward = np.linalg.inv(forward)
    centre = canvas / 2 + canvas * SHIFT * np.array([shift_x, shift_y])
    offset = np.array(mask.size) / 2 - backward @ centre
    matrix = (*backward[0], offset[0], *backward[1], offset[1])
    picture = mask.transform((canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return picture.resize((image_size, image_size), Image.Resampling.BOX).point(lambda value: _PAPER - value)


@lru_cache(maxsize=64)
def ink(character: str, font: str) -> Image.Image:
    """Return a character's mask (ink 255), cropped to its ink, with one pixel around."""
    face = _face(font)
    left, top, right, bottom = face.getbbox(character)
    mask = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), character, fill=255, font=face)
    box = mask.getbbox() or (0, 0, *mask.size)
    return mask.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))


@lru_cache(maxsize=32)
def _face(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _jitter(key: str) -> tuple[float, ...]:
    """Return six numbers in [−1, 1) that depend on the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return tuple(int.from_bytes(digest[4 * i : 4 * i + 4], "little") / 2**31 - 1 for i in range(6))
