"""The built-in source: letters of many scripts, drawn from the fonts that matplotlib ships, offline."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from metalearn_core.data.sources.contract import Color, Item, Loader, Source, SourceClass
from metalearn_core.data.sources.rasterise import RASTERISER, Glyph, GlyphLoader, ink

PICTURES = 20
REFERENCE = "DejaVuSans"
FONTS = (
    REFERENCE,
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-Bold",
    "STIXGeneral",
    "DejaVuSerif-Italic",
    "DejaVuSans-Oblique",
    "DejaVuSerif-Bold",
    "STIXGeneralItalic",
    "DejaVuSansMono-Bold",
)
SCRIPTS = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC6, 0xFE), (0x100, 0x17F), (0x250, 0x2AF)),
    "Greek": ((0x370, 0x3FF),),
    "Cyrillic": ((0x400, 0x4FF),),
    "Armenian": ((0x531, 0x586),),
    "Hebrew": ((0x5D0, 0x5EA),),
    "Arabic": ((0x621, 0x64A),),
    "Nko": ((0x7CA, 0x7EA),),
    "Lao": ((0xE81, 0xEAE),),
    "Georgian": ((0x10A0, 0x10FF),),
    "Canadian": ((0x1401, 0x1676),),
    "Ogham": ((0x1681, 0x169A),),
    "Tifinagh": ((0x2D30, 0x2D67),),
    "Old Italic": ((0x10300, 0x1031E),),
}
LOOK_ALIKE = 0.85
_GRID = 32


class GlyphSource(Source):
    """20 pictures a letter with a jitter of their own; class = character, domain = script.

    Letters that look alike in the reference font, whatever their size, case or script, are one class.
    """

    location = "glyphs"
    default_split_by = "domain"
    rasteriser = RASTERISER

    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return a class for each letter, or group of look-alikes, named by its first character."""
        fonts = _fonts()
        letters = [(script, letter) for script in SCRIPTS for letter in _letters(script, fonts[REFERENCE][1])]
        masks = np.stack([_normalised(letter, fonts[REFERENCE][0]) for _, letter in letters])
        return [_source_class(*letters[first], fonts) for first in _distinct(masks)]

    def loader(self, image_size: int, color: Color) -> Loader:
        """Return what draws letters."""
        return GlyphLoader(image_size, color)

    def grey_test(self) -> None:
        """Return nothing: letters are grey."""

    def fingerprint(self) -> str:
        """Name the versions of everything that draws."""
        import matplotlib
        import PIL
        from PIL import features

        freetype = features.version("freetype2")
        return f"{RASTERISER} pillow {PIL.__version__} freetype {freetype} matplotlib {matplotlib.__version__}"


def _fonts() -> dict[str, tuple[str, frozenset[int]]]:
    """Return each font's file, and the code points that it has a glyph for."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = {name: str(folder / f"{name}.ttf") for name in FONTS}
    return {name: (path, frozenset(FT2Font(path).get_charmap())) for name, path in paths.items()}


def _letters(script: str, available: frozenset[int]) -> list[str]:
    """Return a script's letters that are not composed of others and that the reference font has."""
    points = [point for first, last in SCRIPTS[script] for point in range(first, last + 1) if point in available]
    return [
        chr(point)
        for point in points
        if unicodedata.category(chr(point)) in {"Lu", "Ll", "Lo"} and not unicodedata.decomposition(chr(point))
    ]


def _normalised(letter: str, font: str) -> npt.NDArray[np.float32]:
    """Return a letter's ink as a vector of norm 1, centred and scaled to fill a grid of fixed size."""
    mask = ink(letter, font)
    scale = _GRID / max(mask.size)
    width, height = (max(1, round(side * scale)) for side in mask.size)
    grid = Image.new("L", (_GRID, _GRID))
    small = mask.resize((width, height), Image.Resampling.BOX)
    grid.paste(small, ((_GRID - width) // 2, (_GRID - height) // 2))
    values = np.asarray(grid, dtype=np.float32).ravel()
    normalised: npt.NDArray[np.float32] = values / np.linalg.norm(values)
    return normalised


def _distinct(masks: npt.NDArray[Any]) -> list[int]:
    """Return the rows of masks (n, d) that look like no earlier one that was kept."""
    similarity = masks @ masks.T
    kept: list[int] = []
    for i in range(len(masks)):
        if not kept or similarity[i, kept].max() < LOOK_ALIKE:
            kept.append(i)
    return kept


def _source_class(script: str, letter: str, fonts: dict[str, tuple[str, frozenset[int]]]) -> SourceClass:
    name = f"{script}/U+{ord(letter):04X} {unicodedata.name(letter)}"
    faces: Sequence[str] = [path for path, points in fonts.values() if ord(letter) in points]
    items = [
        Item(f"{name}/{picture:02d}", Glyph(letter, faces[picture % len(faces)], picture))
        for picture in range(PICTURES)
    ]
    return SourceClass(name, script, items)
