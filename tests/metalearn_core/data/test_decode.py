import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn_core.data.decode import decode_image, is_grey_image, standard_image
from metalearn_core.data.sources.contract import UndecodableError

SIZE = 8


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return io.BytesIO(content.getvalue())


def ramp() -> np.ndarray:
    return np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * 3


def test_grey_pixels_of_the_asked_size_stay_as_they_are() -> None:
    assert np.array_equal(decode_image(encoded(Image.fromarray(ramp())), SIZE, "grey"), ramp()[None])


def test_rgb_is_channels_first() -> None:
    pixels = np.stack([ramp(), ramp().T, 255 - ramp()], axis=-1)
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels)), SIZE, "rgb"), pixels.transpose(2, 0, 1))


def test_one_bit_ink_is_black() -> None:
    bits = (np.indices((SIZE, SIZE)).sum(0) % 2 * 255).astype(np.uint8)
    image = Image.fromarray(bits).convert("1")
    assert np.array_equal(decode_image(encoded(image), SIZE, "grey"), bits[None])


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    image = Image.fromarray(ramp().astype(np.uint16) * 257)
    assert np.array_equal(decode_image(encoded(image), SIZE, "grey"), ramp()[None])


def test_sixteen_bit_grey_is_rounded_to_the_nearest_of_eight() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "PPM", "TIFF"):
        found = decode_image(encoded(Image.fromarray(values), kind), 256, "grey")[0]
        assert np.array_equal(found, np.rint(values / 257).astype(np.uint8)), kind


def test_whole_numbers_of_32_bits_are_taken_as_bytes_and_floats_as_shares() -> None:
    whole = Image.fromarray(ramp().astype(np.int32))
    assert np.array_equal(decode_image(encoded(whole, "TIFF"), SIZE, "grey"), ramp()[None])
    shares = Image.fromarray((ramp() / 255).astype(np.float32))
    assert np.array_equal(decode_image(encoded(shares, "TIFF"), SIZE, "grey"), ramp()[None])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((8, 8), 4000, np.int32), "32-bit pixels from 4000 to 4000, expected 0 to 255"),
        (np.full((8, 8), -1, np.int32), "32-bit pixels from -1 to -1, expected 0 to 255"),
        (np.full((8, 8), 200, np.float32), "floating-point pixels from 200 to 200, expected 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "floating-point pixels from nan to nan, expected 0 to 1"),
    ],
)
def test_pixels_of_32_bits_in_another_range_are_undecodable(values: np.ndarray, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        decode_image(encoded(Image.fromarray(values), "TIFF"), SIZE, "grey")


PEAK = """
import re, sys
from pathlib import Path
from metalearn_core.data.decode import decode_image

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
decode_image(Path(sys.argv[1]), 28, "grey")
print(peak() - before)
"""


def test_a_large_sixteen_bit_image_takes_a_few_bytes_for_each_pixel(tmp_path: Path) -> None:
    Image.new("I;16", (4000, 4000), 40_000).save(tmp_path / "large.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large.png")]
    kibibytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert kibibytes * 1024 < 10 * 4000 * 4000


def test_a_decoding_worker_imports_little() -> None:
    code = (
        "import sys, metalearn_core.data.sources.folder, metalearn_core.data.sources.spill\n"
        "print([name for name in ('pydantic', 'filelock', 'pyarrow', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_transparency_is_white() -> None:
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[:, : SIZE // 2, 3] = 255
    grey = decode_image(encoded(Image.fromarray(pixels)), SIZE, "grey")[0]
    assert (grey[:, : SIZE // 2] == 0).all()
    assert (grey[:, SIZE // 2 :] == 255).all()


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (decode_image(encoded(image, transparency=0), SIZE, "rgb") == 255).all()


def test_cmyk_becomes_rgb() -> None:
    pixels = decode_image(encoded(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "JPEG"), SIZE, "rgb")
    assert pixels[0].mean() > 200
    assert pixels[1:].mean() < 60


def test_exif_orientation_is_applied() -> None:
    upright = Image.new("L", (SIZE, SIZE), 255)
    upright.paste(0, (0, 0, SIZE, SIZE // 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decode_image(encoded(stored, "PNG", exif=exif), SIZE, "grey"), np.asarray(upright)[None])


def test_any_size_becomes_square() -> None:
    assert decode_image(encoded(Image.new("RGB", (301, 57))), 20, "rgb").shape == (3, 20, 20)


def test_resizing_averages_instead_of_skipping() -> None:
    stripes = np.tile(np.array([[0], [255]], np.uint8), (100, 200))
    grey = decode_image(encoded(Image.fromarray(stripes)), 10, "grey")
    assert np.abs(grey.astype(int) - 127).max() < 20


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an image"), (b"hello, I am text", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image|truncated")],
)
def test_what_is_no_image_is_undecodable(content: bytes, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        decode_image(io.BytesIO(content), SIZE, "grey")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_file_is_undecodable(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    content = encoded(noise, kind).getvalue()
    with pytest.raises(UndecodableError):
        decode_image(io.BytesIO(content[: len(content) // 2]), SIZE, "grey")


@pytest.mark.parametrize("side", [8_500, 20_000])
def test_huge_image_is_refused_by_its_header(side: int) -> None:
    content = encoded(Image.new("1", (16, 16))).getvalue()
    header = side.to_bytes(4, "big") * 2
    import zlib

    chunk = b"IHDR" + header + content[24:29]
    huge = content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
    with pytest.raises(UndecodableError, match="64 megapixels"):
        decode_image(io.BytesIO(huge), SIZE, "grey")


def test_grey_is_told_from_colour_by_mode_and_palette() -> None:
    grey_palette = Image.fromarray(ramp()).quantize(8)
    assert is_grey_image(encoded(Image.new("1", (4, 4))))
    assert is_grey_image(encoded(grey_palette))
    assert not is_grey_image(encoded(Image.new("RGB", (4, 4))))


def test_an_image_of_the_callers_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as opened, Image.open(tmp_path / "large.jpg") as untouched:
        assert standard_image(opened, SIZE, "grey").shape == (1, SIZE, SIZE)
        assert (opened.size, opened.mode) == (untouched.size, untouched.mode)
        assert np.array_equal(np.asarray(opened), np.asarray(untouched))
