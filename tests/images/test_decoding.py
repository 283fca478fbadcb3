from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from ovr_ray.images import BadImage, decode, read_image
from ovr_ray.model import prepared


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def gradient(mode: str = "L", size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_decodes_to_gray_and_rgb(kind: str, mode: str) -> None:
    content = encoded(gradient(mode), kind)
    gray, rgb = decode(content, "gray"), decode(content, "rgb")
    assert gray.shape == (1, 10, 20)
    assert rgb.shape == (3, 10, 20)
    assert gray.dtype == rgb.dtype == np.uint8
    assert np.abs(gray[0].astype(int) - np.asarray(gradient("L"))).max() <= 12  # lossy formats


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    pixels = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(pixels)), "gray").tolist() == [[[0, 1, 128, 255]]]


def test_a_palette_is_looked_up() -> None:
    content = encoded(gradient("RGB").quantize(16))
    assert np.ptp(decode(content, "gray")) > 150


def test_transparency_lies_on_white() -> None:
    content = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    assert (decode(content, "gray") == 255).all()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    content = encoded(gradient(), "JPEG", exif=exif)
    assert decode(content, "gray").shape == (1, 20, 10)


def test_an_image_is_squashed_to_the_asked_size() -> None:
    assert decode(encoded(gradient()), "rgb", 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (encoded(gradient(size=(200, 200)).effect_spread(50))[:-800], "damaged"),
        (encoded(gradient("F"), "TIFF"), "floating-point"),
    ],
)
def test_a_bad_file_says_what_is_wrong(content: bytes, told: str) -> None:
    with pytest.raises(BadImage, match=told):
        decode(content, "gray")


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="more than 100 pixels"):
        decode(encoded(gradient()), "gray")


def test_a_file_that_cannot_be_read_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(str(tmp_path / "folder.png"), "gray")


def test_names_with_spaces_and_umlauts_are_read(tmp_path: Path) -> None:
    gradient().save(tmp_path / "Zelle nº 7 – größe.png")
    assert read_image(str(tmp_path / "Zelle nº 7 – größe.png"), "gray").shape == (1, 10, 20)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_a_joint_model_makes_of_a_file_what_training_stored_of_it(mode: str, color: Literal["gray", "rgb"]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3) if mode == "RGB" else (50, 75), np.uint8)
    content = encoded(Image.fromarray(pixels))
    stored, plain = (torch.from_numpy(decode(content, color, size).copy()) for size in (32, None))
    as_it_is = torch.from_numpy(decode(content, "rgb" if mode == "RGB" else "gray").copy())
    for given in (plain, as_it_is, as_it_is.float() / 255):
        seen = prepared(given[None], len(stored), 32)[0] * 255
        assert (seen.round().byte() != stored).float().mean() < 0.002  # luminance: Pillow rounds halves otherwise
