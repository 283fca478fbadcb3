"""One image file -> one uint8 array; what a bad file is."""

from __future__ import annotations

import io
import math
import warnings
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from upath import UPath

from ovr_ray.model import prepared
from ovr_ray.storage import storage_errors

# for the whole process, as catch_warnings is not for threads; such images are told by us
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Files that are taken for images where a folder is given."""


class BadImage(Exception):
    """A file that does not hold an image that can be decoded; says why."""


class UnreadableImage(BadImage):
    """A file that cannot be read, now: a disk or a network may be better later, where its content would not be."""


def decode(content: bytes, color: Literal["gray", "rgb"], size: int | None = None) -> np.ndarray:
    """Decode an image file.

    16-bit gray is scaled to 8 bits, transparency is laid on white, EXIF orientation is applied.

    Parameters
    ----------
    content : bytes
        The file: PNG, JPEG, TIFF, BMP or WebP.
    color : {"gray", "rgb"}
        Gray is ITU-R 601 luminance.
    size : int, optional
        Pixels a side of the square that the image is resized to, just as joint models do; None: as it is.

    Returns
    -------
    ndarray of uint8, (1 or 3, H, W)

    Raises
    ------
    BadImage
        If the file is empty, truncated, not an image, or absurdly large.
    """
    if not content:
        raise BadImage("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        if image.width * image.height > (limit := Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow only warns, up to twice
            raise BadImage(f"more than {limit:,} pixels")
        image.load()
        image = _eight_bit(ImageOps.exif_transpose(image)).convert("L" if color == "gray" else "RGB")
    except Image.DecompressionBombError:
        raise BadImage(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except UnidentifiedImageError:
        raise BadImage("not an image, or of an unknown format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise for damaged files
        raise BadImage(f"damaged: {error}") from None
    array = np.array(image)
    array = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    if size is None or array.shape[1:] == (size, size):
        return array
    return (prepared(torch.from_numpy(array)[None], len(array), size)[0] * 255).round().byte().numpy()


def read_image(file: str, color: Literal["gray", "rgb"], size: int | None = None) -> np.ndarray:
    """Read and :func:`decode` a file (path or URI); raises :class:`BadImage`, also if it cannot be read."""
    return decode(read_file(file), color, size)


def read_file(file: str) -> bytes:
    """A file's content; raises :class:`UnreadableImage`."""
    try:
        return UPath(file).read_bytes()
    except storage_errors() as error:
        raise UnreadableImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image
