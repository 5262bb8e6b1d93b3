"""What an image file says of its own pixels: which way is up (EXIF), and how many bits a value has. Numpy and PIL.

Official sets are read without it, as everybody reads them; it is for a user's own photographs and for `classify`.

Legend: H, W height and width of the stored image, C channels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL raises for files that are no images, are cut off, or are damaged inside."""
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What is read, by PIL's names. PIL knows more, and hands some to other programs: EPS is run by Ghostscript."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that a camera or scanner gives to a value; what is found is the first that holds the largest value."""
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 0x0102
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Facts:
    """What one file says.

    Attributes:
        orientation: EXIF's, 1 to 8; 1 is upright.
        depth: bits that its values need, one of `DEPTHS` or what the file states; 0 for images of 8 bits.
        has_more: whether the file holds several pictures (pages, an animation), of which the first is read.
    """

    orientation: int = 1
    depth: int = 0
    has_more: bool = False


@dataclass(frozen=True)
class Reading:
    """How a user's own image files are read: upright, and with all their bits.

    A value has `depth` bits where a file has more than 8; None: what each needs.
    """

    depth: int | None = None


def opened(file: Path | bytes) -> Image.Image:
    """An image file of one of `FORMATS`, a path or its content, its header read; OSError if it is none of these.

    The one place where files are opened as images.
    """
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify it as one of {', '.join(FORMATS)}") from None


def read(image: Image.Image, file: Path | bytes | None, reading: Reading) -> Image.Image:
    """An opened image upright, in RGB or grey of 8 bits where it had more; else in its own mode.

    Raises:
        ValueError: if its values have no 8-bit equivalent.
    """
    values = deep_values(image, file)
    image.load()
    way = orientation(image)
    if values is not None:
        image = Image.fromarray(to_8_bits(values, reading.depth or _stated(image) or needed(values)))
    return image if way == 1 else image.transpose(_TRANSPOSES[way])


def facts(file: Path | bytes | Image.Image) -> Facts:
    """Look at a file, its content, or an opened image: only its header, if it is no PNG with EXIF and has 8 bits.

    A file that cannot be read says nothing; whoever decodes it gives the error.
    """
    try:
        if isinstance(file, Image.Image):
            return _facts(file, None)
        with opened(file) as image:
            return _facts(image, file)
    except BROKEN:
        return Facts()


def _facts(image: Image.Image, file: Path | bytes | None) -> Facts:
    values = deep_values(image, file)
    depth = 0 if values is None else _stated(image) or needed(values)
    has_more = bool(getattr(image, "is_animated", False))
    if image.format == "TIFF":  # PIL turns these itself
        return Facts(depth=depth, has_more=has_more)
    if image.format == "PNG" and file is not None and values is None:
        # PIL would decode every one to look behind its pixels
        content = file if isinstance(file, bytes) else file.read_bytes()
        if not any(mark in content for mark in _PNG_EXIF):
            return Facts(has_more=has_more)
    return Facts(orientation(image), depth, has_more)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    with contextlib.suppress(*BROKEN, KeyError, TypeError, AttributeError):
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return 1


def deep_values(image: Image.Image, file: Path | bytes | None) -> NDArray[np.uint16] | None:
    """(H, W) or (H, W, 3) values of an image that stores more than 8 bits each; None for any other. Loads `image`.

    One in colour must not be loaded yet: its values are read from `file`, a path or content, and stay at PIL's 8 bits
    without it. ValueError if values are fractions, negative or above 65535.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image.load()
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode} with values outside of 0..65535 has no 8-bit equivalent")
        return values.astype(np.uint16)
    kind, low = _low_mode(_raw_mode(image))
    if file is None or low is None:
        return None
    image.load()
    other: Any
    with opened(file) as other:  # PIL keeps the high byte of a colour; told the other byte order, it keeps the low one
        other.tile = [_with_raw_mode(tile, low) for tile in other.tile]
        other.load()
        second = np.asarray(other)
    if kind == "LA":  # read as four bytes: grey high, grey low, alpha high, alpha low
        pair = second.astype(np.uint16)
        return np.repeat((pair[..., :1] << 8) | pair[..., 1:2], 3, axis=2)
    return (np.asarray(image)[..., :3].astype(np.uint16) << 8) | second[..., :3]


def needed(values: NDArray[np.uint16]) -> int:
    """The first of `DEPTHS` that holds the largest value."""
    return next(depth for depth in DEPTHS if int(values.max(initial=0)) < 1 << depth)


def to_8_bits(values: NDArray[np.uint16], depth: int) -> NDArray[np.uint8]:
    """Scale 0 .. 2^depth - 1 to 0 .. 255, to the nearest; ValueError if a value does not fit."""
    top = (1 << depth) - 1
    if int(values.max(initial=0)) > top:
        raise ValueError(f"it holds values up to {values.max()}, which do not fit {depth} bits (0..{top})")
    # 16 bits do not hold 255 times the largest value
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _stated(image: Image.Image) -> int:
    """Bits of a value where the file states fewer than it is stored with; 0 where it does not."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return int(bits[0]) if 8 < int(bits[0]) < 16 else 0


def _raw_mode(image: Image.Image) -> str:
    """How PIL's decoder is told to unpack the bytes; empty where it unpacks none."""
    for tile in getattr(image, "tile", None) or ():
        mode = tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else ""
        return mode if isinstance(mode, str) else ""
    return ""


def _low_mode(raw: str) -> tuple[str, str | None]:
    """Kind of a 16-bit colour, and the raw mode that unpacks its low bytes; None for all else."""
    kind, _, packing = raw.partition(";")
    if packing not in ("16B", "16L", "16N") or kind not in ("RGB", "RGBA", "RGBX", "LA"):
        return kind, None
    if kind == "LA":
        return kind, "RGBA" if packing == "16B" else None
    is_big = packing == "16B" or (packing == "16N" and sys.byteorder == "big")
    return kind, f"{kind};16L" if is_big else f"{kind};16B"


def _with_raw_mode(tile: Any, raw: str) -> Any:
    *place, old = tile
    new = raw if isinstance(old, str) else (raw, *old[1:])
    return type(tile)(*place, new) if hasattr(tile, "_fields") else (*place, new)
