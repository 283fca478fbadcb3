from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovr_ray.images import BadImage, decode, read_image
from ovr_ray.model import prepared
from ovr_ray.recipe import Data
from tests.support import GRAY, RGB


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "L", size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_decodes_to_gray_and_rgb(kind: str, mode: str) -> None:
    content = encoded(gradient(mode), kind)
    gray, rgb = decode(content, GRAY), decode(content, RGB)
    assert gray.shape == (1, 10, 20)
    assert rgb.shape == (3, 10, 20)
    assert gray.dtype == rgb.dtype == np.uint8
    assert np.abs(gray[0].astype(int) - np.asarray(gradient("L"))).max() <= 12  # some formats are lossy


def test_sixteen_bit_pixels_are_scaled_not_clipped() -> None:
    pixels = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(pixels)), GRAY).tolist() == [[[0, 1, 128, 255]]]


def test_palette_indices_are_converted_to_their_colors() -> None:
    content = encoded(gradient("RGB").quantize(16))
    assert np.ptp(decode(content, GRAY)) > 150


def test_transparent_pixels_become_white() -> None:
    content = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    assert (decode(content, GRAY) == 255).all()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    content = encoded(gradient(), "JPEG", exif=exif)
    assert decode(content, GRAY).shape == (1, 20, 10)


def test_an_image_is_resized_to_the_requested_square() -> None:
    assert decode(encoded(gradient()), RGB, 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (encoded(gradient(size=(200, 200)).effect_spread(50))[:-800], "damaged"),
        (encoded(gradient("F"), "TIFF"), "floating-point"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(content, GRAY)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="more than 100 pixels"):
        decode(encoded(gradient()), GRAY)


def test_a_file_that_cannot_be_read_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(str(tmp_path / "folder.png"), GRAY)


def test_file_names_may_contain_spaces_and_non_ascii_characters(tmp_path: Path) -> None:
    gradient().save(tmp_path / "Zelle nº 7 – größe.png")
    assert read_image(str(tmp_path / "Zelle nº 7 – größe.png"), GRAY).shape == (1, 10, 20)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("data", [GRAY, RGB])
def test_a_joint_model_prepares_an_image_as_training_stored_it(mode: str, data: Data) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3) if mode == "RGB" else (50, 75), np.uint8)
    content = encoded(Image.fromarray(pixels))
    stored, plain = (torch.from_numpy(decode(content, data, size).copy()) for size in (32, None))
    original = torch.from_numpy(decode(content, RGB if mode == "RGB" else GRAY).copy())
    for image in (plain, original, original.float() / 255):
        seen = prepared(image[None], len(stored), 32)[0] * 255
        # not always equal, because Pillow rounds halves of the luminance differently
        assert (seen.round().byte() != stored).float().mean() < 0.002
