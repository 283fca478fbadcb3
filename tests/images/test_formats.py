"""Formats and pixel ranges of image files, and damaged files of every format."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from ovr_ray.images import BadImage, decode
from ovr_ray.images.decoding import FORMATS
from tests.support import GRAY, RGB

SECONDS = 30
LEVELS = np.array([[0, 1000], [65535, 4095]], "<u2")


def tiff(pixels: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF of one channel with these tags."""
    height, width = pixels.shape
    data = pixels.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data)), (339, sample_format)]]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(LEVELS, 16), [[0, 4], [255, 16]]),
        (tiff(LEVELS, 16, photometric=0), [[255, 251], [0, 239]]),
        (tiff(np.array([[0, 10], [255, 40]], "u1"), 8, photometric=0), [[255, 245], [0, 215]]),
        (file_of(Image.fromarray(LEVELS), "PNG"), [[0, 4], [255, 16]]),
        (file_of(Image.fromarray(LEVELS), "PNG", exif=struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 274, 3, 1, 6)), None),
    ],
    ids=["16 bits", "16 bits, zero is white", "8 bits, zero is white", "PNG of 16 bits", "PNG of 16 bits, rotated"],
)
def test_gray_is_scaled_by_the_range_of_its_file(content: bytes, expected: list[list[int]] | None) -> None:
    assert decode(content, GRAY)[0].tolist() == (expected or [[255, 0], [16, 4]])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(LEVELS, 16), [[0, 62], [255, 255]]),
        (tiff(LEVELS, 16, photometric=0), [[255, 193], [0, 0]]),
        (file_of(Image.fromarray(LEVELS), "PNG"), [[0, 62], [255, 255]]),
        (file_of(Image.fromarray(LEVELS.astype("u1")), "PNG"), [[0, 232], [255, 255]]),
        (tiff(LEVELS.astype("u1"), 8, photometric=0), [[255, 23], [0, 0]]),
    ],
    ids=["TIFF", "TIFF, zero is white", "PNG", "PNG of 8 bits", "TIFF of 8 bits, zero is white"],
)
def test_the_recipe_says_what_is_white_in_gray_of_more_than_8_bits(content: bytes, expected: list[list[int]]) -> None:
    assert decode(content, GRAY.model_copy(update={"white": 4095}))[0].tolist() == expected
    rgb = decode(content, RGB.model_copy(update={"white": 4095}))
    assert all(channel.tolist() == expected for channel in rgb)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(LEVELS.astype("<i2"), 16, sample_format=2), "pixels with a sign"),
        (tiff(LEVELS.astype("i1"), 8, sample_format=2), "pixels with a sign"),
        (tiff(LEVELS.astype("<u4"), 32), "pixels of 32 bits"),
        (tiff(LEVELS.astype("<i4"), 32, sample_format=2), "pixels with a sign"),
        (tiff(LEVELS.astype("<f4"), 32, sample_format=3), "floating-point pixels"),
    ],
)
def test_pixels_without_a_known_range_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=f"{reason} have no known range; save the image with 8 or 16 bits"):
        decode(content, GRAY)


def test_damaged_exif_does_not_cost_the_pixels() -> None:
    ends_early = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
    number_for_text = (  # the tag of the software, 305, is a rational: Pillow raises AttributeError
        b"Exif\0\0MM\0*\0\0\0\x08\0\x03\x01\x0f\0\x02\0\0\0\x06\0\0\x002\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
        b"\x011\0\x05\0\0\0\x01\0\0\x008\0\0\0\0maker\0\0\0\0H\0\0\0\x01"
    )
    for exif in (ends_early, number_for_text, b"Exif\0\0MM", b"Exif\0\0" + b"\xff" * 40):
        content = file_of(Image.new("RGB", (4, 2), (255, 255, 255)), "JPEG", exif=exif)
        assert (decode(content, GRAY) == 255).all()


def test_a_file_of_another_format_is_refused_whatever_its_name() -> None:
    for form in ("EPS", "PPM", "TGA"):
        with pytest.raises(BadImage, match="of an unknown format"):
            decode(file_of(Image.new("RGB", (2, 2)), form), RGB)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_decoded(form: str) -> None:
    frames = [Image.new("L", (4, 4), level) for level in (255, 0)]
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    content = file_of(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(content, GRAY) == 255).all()


@pytest.mark.slow
def test_whatever_is_in_a_file_it_is_decoded_or_refused_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    originals = [file_of(image, form) for form in FORMATS for image in (noise, noise.convert("L"), noise.convert("1"))]
    originals += [tiff(LEVELS, 16), file_of(noise, "TIFF", compression="tiff_lzw")]
    outcomes = {"decoded": 0, "refused": 0}
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        content = bytearray(originals[rng.integers(len(originals))])
        for at in rng.integers(0, len(content), rng.integers(1, 8)):
            content[at] = rng.integers(256)
        if rng.random() < 0.3:
            content = content[: rng.integers(1, len(content) + 1)]
        try:
            image = decode(bytes(content), RGB)
        except BadImage:
            outcomes["refused"] += 1
        else:
            assert (image.dtype, image.shape[0]) == (np.uint8, 3)
            outcomes["decoded"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_the_transparent_level_of_a_gray_png_of_16_bits_is_white() -> None:
    content = io.BytesIO()
    levels = np.array([[0, 1000, 65535, 1001]], np.uint16)
    Image.fromarray(levels).save(content, "PNG", transparency=1000)
    assert decode(content.getvalue(), GRAY)[0, 0].tolist() == [0, 255, 255, 4]
