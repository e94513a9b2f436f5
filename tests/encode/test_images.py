"""Pixels: what a viewer shows is what a model gets, or an error that names the input."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragkit.core.errors import EncodeError
from ragkit.encode.images import Resizing, centre_square, normalised, patch_rows, resized, upright_rgb, upright_size

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Soft blots of colour: any resampling, turning or shift shows, and nothing rings."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def saved(image: Image.Image, kind: str, **settings: object) -> Image.Image:
    """Through a file's bytes, not yet decoded."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(upright_rgb(0, image), dtype=np.int64)


def test_rgb_is_left_as_it_is() -> None:
    image = picture(30, 20)
    assert np.array_equal(pixels(image), np.asarray(image))
    assert np.array_equal(pixels(saved(image, "PNG")), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation: int) -> None:
    stored = picture(30, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = saved(stored, "PNG", exif=exif)
    a = np.asarray(stored)  # the eight ways to turn a picture, by the standard
    upright = {
        1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2), 6: a.transpose(1, 0, 2)[:, ::-1],
        7: a.transpose(1, 0, 2)[::-1, ::-1], 8: a.transpose(1, 0, 2)[::-1],
    }[orientation]  # fmt: skip
    assert upright_size(0, opened) == upright.shape[1::-1]
    assert np.array_equal(pixels(opened), upright)


def test_a_palette_keeps_its_colours() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    image.putdata([0, 1, 2, 3])
    assert pixels(saved(image, "PNG"))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]


def test_cmyk_white_is_white_and_black_is_black() -> None:
    image = Image.new("CMYK", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)])
    for one in (image, saved(image, "TIFF")):
        assert pixels(one)[0].tolist() == [[255, 255, 255], [0, 0, 0], [255, 0, 0]]
    photo = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(pixels(photo) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(3, axis=0)
    expected = np.round(ramp / 257)[:, :, None].repeat(3, axis=2)
    assert np.array_equal(pixels(saved(Image.fromarray(ramp), kind)), expected)


def test_sixteen_bits_in_a_mode_of_thirty_two_are_scaled_too() -> None:
    header = b"P5\n4 1\n65535\n" + np.array([0, 257, 32896, 65535], dtype=">u2").tobytes()
    image = Image.open(io.BytesIO(header))
    assert image.mode == "I"
    assert pixels(image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(Image.fromarray(np.array([[0, 7, 255]], np.int32)))[0, :, 0].tolist() == [0, 7, 255]  # eight bits in thirty-two


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV", "RGBX", "RGBa", "La", "PA"])
def test_white_is_white_in_other_modes_too(mode: str) -> None:
    step = {"RGBa": "RGBA", "La": "LA", "PA": "P", "RGBX": "RGB"}.get(mode, mode)
    white = Image.new("RGB", (2, 2), "white").convert(step)
    white = white if step == mode else white.convert(mode)
    assert white.mode == mode
    assert pixels(white).tolist() == [[[255] * 3] * 2] * 2


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(255, 0, 0, 0), (0, 0, 255, 255)])
    grey = Image.new("LA", (2, 1))
    grey.putdata([(0, 0), (7, 255)])
    palette = image.convert("RGB").quantize(2)
    for one, last in ((saved(image, "PNG"), [0, 0, 255]), (saved(grey, "PNG"), [7, 7, 7])):
        assert pixels(one)[0].tolist() == [[255, 255, 255], last]
    hidden = palette.getpixel((0, 0))
    assert pixels(saved(palette, "PNG", transparency=hidden))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_file_is_an_error(kind: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    content = file.getvalue()
    cut = content[: len(content) // 2]
    try:
        image = Image.open(io.BytesIO(cut))
    except OSError:
        return  # refused when it is opened, before it is ours
    with pytest.raises(EncodeError, match="input 7: the image cannot be decoded"):
        upright_rgb(7, image)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is damaged
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_garbled_files_are_an_error_or_an_image_never_anything_else(kind: str) -> None:
    file, rng = io.BytesIO(), random.Random(kind)
    picture(40, 30).save(file, kind)
    outcomes = set()
    for _ in range(150):
        content = bytearray(file.getvalue())
        for _ in range(rng.randrange(1, 12)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            image = Image.open(io.BytesIO(bytes(content)))
        except Exception:
            continue  # the caller's own error: no image ever reached us
        try:
            outcomes.add(upright_rgb(3, image).mode)
        except EncodeError as error:
            outcomes.add(str(error).split(":")[0])
    assert outcomes
    assert outcomes <= {"RGB", "input 3"}


def test_damaged_exif_does_not_cost_the_pixels() -> None:
    image = picture(30, 20)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"\xff" * 40):
        file = io.BytesIO()
        image.save(file, "PNG")
        content = file.getvalue()
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        opened = Image.open(io.BytesIO(content[:33] + chunk + content[33:]))
        assert np.array_equal(pixels(opened), np.asarray(image))


def test_bombs_are_refused_without_being_decoded() -> None:
    def png(width: int, height: int) -> bytes:
        """Black, in kilobytes."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")

    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(png(13000, 13000)))
    with pytest.raises(EncodeError, match=r"input 0: the image has 13000 x 13000 pixels, and more than 134,217,728"):
        upright_rgb(0, image)
    with pytest.raises(Image.DecompressionBombError):  # Pillow's own limit, which nothing here raises
        Image.open(io.BytesIO(png(50000, 50000)))


def test_a_page_scan_of_twenty_megapixels_is_taken() -> None:
    assert upright_rgb(0, Image.new("L", (4000, 5000), 255)).size == (4000, 5000)


@pytest.mark.parametrize("size", [(1, 65535), (65535, 1), (201, 1)])
def test_a_strip_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(EncodeError, match=r"no side may be over 200 times the other"):
        upright_size(0, Image.new("L", size))
    assert upright_size(0, Image.new("L", (200, 1))) == (200, 1)


def test_numbers_without_a_white_are_refused() -> None:
    with pytest.raises(EncodeError, match="holds floats"):
        upright_rgb(0, Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    for values in ([[-1, 5]], [[0, 70000]]):
        with pytest.raises(EncodeError, match="32-bit values from"):
            upright_rgb(0, Image.fromarray(np.array(values, dtype=np.int32)))
    with pytest.raises(EncodeError, match="0 x 5 pixels"):
        upright_size(0, Image.new("L", (0, 5)))


def test_a_closed_file_is_an_error(tmp_path: Path) -> None:
    picture(9, 9).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(EncodeError, match="input 0: the image cannot be decoded"):
        upright_rgb(0, image)


# Against transformers' own preprocessing by PIL


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (1, 150), (2000, 1500), (57, 3000), (640, 640), (29, 27)])
@pytest.mark.parametrize("limits", [(3136, 602112), (4 * 784, 24 * 784), (50176, 12845056)])
def test_patches_equal_those_of_transformers(size: tuple[int, int], limits: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = picture(*size)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    expected = processor(images=[image], return_tensors="np")
    to = Resizing(unit=28, least=limits[0], most=limits[1]).size(*upright_size(0, image))
    rows = patch_rows(normalised(resized(upright_rgb(0, image), to), MEAN, STD), patch=14, frames=2, merge=2)
    assert expected["image_grid_thw"].tolist() == [[1, to[1] // 14, to[0] // 14]]
    assert np.abs(rows - expected["pixel_values"]).max() < 1e-5


def test_a_centre_square_is_the_middle_of_the_shortest_side() -> None:
    image = Image.new("RGB", (96, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    assert np.array_equal(np.asarray(centre_square(image, 32)), np.full((32, 32, 3), (0, 0, 255)))
    assert centre_square(picture(7, 500), 32).size == (32, 32)
