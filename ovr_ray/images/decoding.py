"""Decoding of one image file into one uint8 array, and the errors of bad files."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from upath import UPath

from ovr_ray.model import prepared
from ovr_ray.recipe import Color
from ovr_ray.storage import storage_errors

# set for the whole process, because catch_warnings is not thread-safe; decode reports such images itself
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of the files that count as images when the user gives a folder."""


class BadImage(Exception):
    """The error of a file that holds no image that can be decoded; its message is the reason."""


class UnreadableImage(BadImage):
    """The error of a file that the storage does not return; unlike damaged content, it may be temporary."""


def decode(content: bytes, color: Color, size: int | None = None) -> np.ndarray:
    """Decode the content of an image file.

    16-bit gray is scaled to 8 bits, transparent pixels are blended with white, and EXIF orientation is applied.

    Parameters
    ----------
    content : bytes
        A PNG, JPEG, TIFF, BMP or WebP file.
    color : {"gray", "rgb"}
        Gray is ITU-R 601 luminance.
    size : int, optional
        Side in pixels of the square that the image is resized to, in the same way as in a joint model. None keeps the
        image's size.

    Returns
    -------
    ndarray of uint8, (1 or 3, H, W)

    Raises
    ------
    BadImage
        If the file is empty, truncated or not an image, if its pixels are floating-point numbers, or if there are more
        of them than Pillow considers safe.
    """
    if not content:
        raise BadImage("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        # up to twice the limit, Pillow only warns
        if image.width * image.height > (limit := Image.MAX_IMAGE_PIXELS or math.inf):
            raise BadImage(f"more than {limit:,} pixels")
        image.load()
        image = _eight_bit(ImageOps.exif_transpose(image)).convert("L" if color == "gray" else "RGB")
    except Image.DecompressionBombError:
        raise BadImage(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except UnidentifiedImageError:
        raise BadImage("not an image, or of an unknown format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise these for damaged files
        raise BadImage(f"damaged: {error}") from None
    array = np.array(image)
    array = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    if size is None or array.shape[1:] == (size, size):
        return array
    return (prepared(torch.from_numpy(array)[None], len(array), size)[0] * 255).round().byte().numpy()


def read_image(file: str, color: Color, size: int | None = None) -> np.ndarray:
    """Read a file (path or URI) and :func:`decode` it; raise :class:`BadImage`, also if the file cannot be read."""
    return decode(read_file(file), color, size)


def read_file(file: str) -> bytes:
    """Return a file's content; raise :class:`UnreadableImage` if the storage fails."""
    try:
        return UPath(file).read_bytes()
    except storage_errors() as error:
        raise UnreadableImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image
