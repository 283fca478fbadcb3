"""Decoding of one image file into one uint8 array, and the errors of bad files."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from upath import UPath

from ovr_ray.model import prepared
from ovr_ray.recipe import Data
from ovr_ray.storage import storage_errors

# set for the whole process, because catch_warnings is not thread-safe; decode reports such images itself
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings(
    "ignore", category=UserWarning, module="PIL"
)  # damaged EXIF and metadata; the pixels are decoded

FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
"""Formats that are decoded; of several frames or pages the first. Pillow's other decoders are never entered."""

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Suffixes of the files that count as images when the user gives a folder."""

TIFF: Final = (b"II*\0", b"MM\0*")
"""First bytes of a TIFF."""

WHITE_IS_ZERO: Final = 0
"""Value of TIFF's PhotometricInterpretation."""

SIGNED: Final = 2
"""Value of TIFF's SampleFormat."""

DAMAGED_METADATA: Final = (
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""Errors that Pillow raises for damaged EXIF, which the pixels do not depend on."""


class BadImage(Exception):
    """The error of a file that holds no image that can be decoded; its message is the reason."""


class UnreadableImage(BadImage):
    """The error of a file that the storage does not return; unlike damaged content, it may be temporary."""


@dataclass(frozen=True)
class Facts:
    """What is known of an image file after it was read.

    Attributes
    ----------
    error : str
        The reason why it could not be decoded, or "".
    digest : bytes
        SHA-256 of its content; empty if it could not be decoded.
    peak, white : int
        Of a gray image of more than 8 bits: its largest value, and the value of white. Of others: 0.
    """

    error: str = ""
    digest: bytes = b""
    peak: int = 0
    white: int = 0


def decode(content: bytes, data: Data, size: int | None = None) -> np.ndarray:
    """Decode the content of an image file.

    Gray of more than 8 bits is scaled to 8 bits by ``data.white``, or else by the range that the file gives.
    Transparent pixels are blended with white, and EXIF orientation is applied if it can be read. Of several frames or
    pages the first is decoded.

    Parameters
    ----------
    content : bytes
        A file of one of :data:`FORMATS`.
    data : Data
        Its ``color`` and ``white`` are used; gray is ITU-R 601 luminance.
    size : int, optional
        Side in pixels of the square that the image is resized to, in the same way as in a joint model. None keeps the
        image's size.

    Returns
    -------
    ndarray of uint8, (1 or 3, H, W)

    Raises
    ------
    BadImage
        If the file is empty, damaged or of another format, if its pixels have no known range (floating-point numbers,
        32 bits, or a sign), or if there are more of them than Pillow considers safe.
    """
    return _decoded(content, data, size)[0]


def examine(content: bytes, data: Data, size: int | None = None) -> tuple[np.ndarray, Facts]:
    """:func:`decode` the content of an image file, and return the facts of the file as well."""
    image, facts = _decoded(content, data, size)
    return image, replace(facts, digest=hashlib.sha256(content).digest())


def read_image(file: str, data: Data, size: int | None = None) -> np.ndarray:
    """Read a file (path or URI) and :func:`decode` it; raise :class:`BadImage`, also if the file cannot be read."""
    return decode(read_file(file), data, size)


def read_facts(file: str, data: Data) -> Facts:
    """Read a file (path or URI), and return the facts of it, whether it can be decoded or not."""
    try:
        return examine(read_file(file), data)[1]
    except BadImage as bad:
        return Facts(error=str(bad))


def read_file(file: str) -> bytes:
    """Return a file's content; raise :class:`UnreadableImage` if the storage fails."""
    try:
        return UPath(file).read_bytes()
    except storage_errors() as error:
        raise UnreadableImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decoded(content: bytes, data: Data, size: int | None) -> tuple[np.ndarray, Facts]:
    if not content:
        raise BadImage("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        # up to twice the limit, Pillow only warns
        if image.width * image.height > (limit := Image.MAX_IMAGE_PIXELS or math.inf):
            raise BadImage(f"more than {limit:,} pixels")
        image.load()
        pixel_range = _range_of(image, data.white)
        facts = Facts(peak=int(np.asarray(image).max()), white=pixel_range.white) if pixel_range else Facts()
        image = _eight_bit(_upright(image), pixel_range).convert("L" if data.color == "gray" else "RGB")
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except UnidentifiedImageError:
        if content.startswith(TIFF):
            raise BadImage("a kind of TIFF that is not supported; save it with 8 or 16 bits, as PNG") from None
        raise BadImage(f"not an image, or of an unknown format (known: {', '.join(FORMATS)})") from None
    except Exception as error:  # noqa: BLE001  for damaged files Pillow's decoders raise struct.error, TypeError and others
        raise BadImage(f"damaged: {error or type(error).__name__}") from None
    array = np.array(image)
    array = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    if size is not None and array.shape[1:] != (size, size):
        array = (prepared(torch.from_numpy(array)[None], len(array), size)[0] * 255).round().byte().numpy()
    return array, facts


def _upright(image: Image.Image) -> Image.Image:
    """Return an image with its EXIF orientation applied, if that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED_METADATA:  # the pixels are whole
        return image


@dataclass(frozen=True)
class _Range:
    """The range of pixels of more than 8 bits, 0 to ``white``, and whether it is reversed: zero is white."""

    white: int
    zero_is_white: bool


def _range_of(image: Image.Image, white: int | None) -> _Range | None:
    """Return the range of an image with pixels of more than 8 bits; None for other images.

    Raises
    ------
    BadImage
        If the file does not say which value is black and which is white.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
        raise BadImage("pixels with a sign have no known range; save the image with 8 or 16 bits and no sign")
    if image.mode == "I" and image.format != "PNG":  # older versions of Pillow open PNGs of 16 bits as "I"
        raise BadImage("pixels of 32 bits have no known range; save the image with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return None
    bits = min(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
    return _Range(white or (1 << bits) - 1, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO)


def _eight_bit(image: Image.Image, pixel_range: _Range | None) -> Image.Image:
    if pixel_range:  # Pillow's own conversion would clip at 255, and it inverts only images of up to 8 bits
        levels = np.asarray(image).astype(np.float64).clip(0, pixel_range.white) * (255 / pixel_range.white)
        levels = 255 - levels if pixel_range.zero_is_white else levels
        levels[np.asarray(image) == image.info.get("transparency")] = 255  # a PNG may name one level as transparent
        return Image.fromarray((levels + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image
