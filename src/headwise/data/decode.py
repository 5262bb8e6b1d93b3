"""Image files -> uint8 arrays: every mode PIL can open becomes RGB or grey, resized without a network library.

Legend: N images, S the side of the square that the network sees, C channels (3, or 1 for grey tasks).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headwise.data.stored import BROKEN, Reading, deep_values, opened, read, to_8_bits
from headwise.errors import ConfigError, DataError, check_choice, suggest

Array = NDArray[np.uint8]

LINE = re.compile(r", line \d+$")
"""At the end of what names a line of a list."""
NATIVE_LIMIT = 96
"""Images whose longer side is at most this stay as they are; they are resized per batch, on the device."""


def _pil(method: Image.Resampling) -> Callable[[Array, int], Array]:
    def resize(image: Array, size: int) -> Array:
        grey = image.shape[2] == 1
        resized = Image.fromarray(image[..., 0] if grey else image).resize((size, size), method)
        return np.array(resized).reshape(size, size, -1)

    return resize


def _tf_bilinear(image: Array, size: int) -> Array:
    """Bilinear without antialiasing, half-pixel centres: what TensorFlow's resize does by default."""

    def taps(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        # centres of the first pixels lie before the image where it is enlarged: its edge is repeated
        where = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
        low = np.minimum(where.astype(np.int64), length - 1)
        return low, np.minimum(low + 1, length - 1), (where - low).astype(np.float32)

    top, bottom, down = taps(image.shape[0])
    left, right, across = taps(image.shape[1])
    down, across = down[:, None, None], across[None, :, None]
    rows = image[top].astype(np.float32) * (1 - down) + image[bottom].astype(np.float32) * down
    return np.rint(rows[:, left] * (1 - across) + rows[:, right] * across).astype(np.uint8)


RESIZES: dict[str, Callable[[Array, int], Array]] = {
    "pil_bicubic": _pil(Image.Resampling.BICUBIC),
    "pil_bilinear": _pil(Image.Resampling.BILINEAR),
    "tf_bilinear": _tf_bilinear,
}
"""All go straight to S x S and ignore the aspect ratio. The two of PIL are antialiased, TensorFlow's is not."""


SHAPES = ("squash", "crop", "pad")
"""What becomes of an image that is no square: squeezed, its middle, or the whole of it between bars."""


def check_shape(name: str) -> str:
    """Return data.resize; ConfigError unless it is one of `SHAPES`."""
    if name not in SHAPES:
        raise ConfigError(f"unknown data.resize={name!r}{suggest(str(name), SHAPES)}; protocol.resize is the filter")
    return name


def squared(image: Array, shape: str) -> Array:
    """An image (H, W, C) as the square that is then resized; with ``squash`` as it is, for resizing squeezes it.

    ``crop`` keeps the middle of the longer side, so that the shorter one becomes the side of the square. ``pad`` keeps
    everything and fills up with bars in the mean colour of the image.
    """
    height, width = image.shape[:2]
    if shape == "squash" or height == width:
        return image
    if shape == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    whole = np.empty((side, side, image.shape[2]), dtype=np.uint8)
    whole[:] = np.rint(image.mean((0, 1))).astype(np.uint8)
    whole[top : top + height, left : left + width] = image
    return whole


def check_resize(name: str) -> None:
    """Raise ConfigError unless ``name`` is one of the ways to resize."""
    check_choice("resize", name, RESIZES)


def decode(file: Path | bytes, channels: int, where: str, reading: Reading | None = None) -> Array:
    """Read one image file.

    Args:
        file: its path, or its content.
        channels: 3 for RGB, 1 for grey. Transparency is dropped, 16-bit greys are scaled to 8 bits.
        where: what asks for it (list file and line, or record), for the error.
        reading: for a user's own images; None: as stored, whatever way is up, and PIL's 8 bits of deeper colours.
    Returns:
        (H, W, C) at the file's own size (or upright), a copy that may be written to.
    Raises:
        DataError: if the file is empty, no image, cut off or damaged.
    """
    try:
        with opened(file) as image:
            if reading is not None:
                return to_channels(read(image, file, reading), channels)
            image.load()
            return to_channels(image, channels)
    except BROKEN as error:
        if isinstance(file, bytes):
            state = "is empty (0 bytes)" if not file else f"cannot be decoded ({error})"
            way_out = "replace it or remove its row" if LINE.search(where) else "prepare the set again"
            raise DataError(f"{where}: the image {state}; {way_out}") from error
        state = "is empty (0 bytes)" if file.is_file() and file.stat().st_size == 0 else f"cannot be decoded ({error})"
        way_out = "replace the file or remove its line" if LINE.search(where) else "mend the file or remove it"
        raise DataError(f"{where}: image {str(file)!r} {state}; {way_out}") from error


def to_channels(image: Image.Image, channels: int) -> Array:
    """(H, W, C) of an opened image of any mode; ValueError if its values have no 8-bit equivalent."""
    if (values := deep_values(image, None)) is not None:
        image = Image.fromarray(to_8_bits(values, 16))
    # PIL warns of palettes with transparency that are not converted by way of RGBA
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def decode_all(
    files: Sequence[tuple[Path | bytes, str]],
    channels: int,
    size: int,
    resize: str,
    scale: int = 1,
    reading: Reading | None = None,
    shape: str = "squash",
) -> tuple[Array, bool]:
    """Read many image files, each with the list file and line (or record) that errors name, with a few threads.

    `scale` is what stored values are multiplied with, for sets that store 0 and 1; `reading` is as for `decode`,
    `shape` as for `squared`. Gives (N, H, W, C), and whether they are native: all of one size of at most NATIVE_LIMIT
    pixels; else H = W = S. DataError for the first file that cannot be decoded.
    """
    check_resize(resize)
    shrink = RESIZES[resize]

    def decoded(file: tuple[Path | bytes, str]) -> Array:
        array = squared(_scaled(decode(file[0], channels, file[1], reading), scale, file[1]), shape)
        return array if max(array.shape[:2]) <= NATIVE_LIMIT else shrink(array, size)

    small = {(size, size, channels)}
    with ThreadPoolExecutor(num_threads()) as pool:
        arrays = list(pool.map(decoded, files))
    shapes = {array.shape for array in arrays}
    # images that have the network's size as they are count as resized: nothing is left to be done to them
    native = len(shapes) == 1 and shapes != small
    if not native:
        arrays = [array if array.shape[:2] == (size, size) else shrink(array, size) for array in arrays]
    return np.stack(arrays), native


def _scaled(array: Array, scale: int, where: str) -> Array:
    if scale == 1:
        return array
    if int(array.max(initial=0)) * scale > 255:
        raise DataError(f"{where}: the image holds values up to {array.max()}, at most {255 // scale} are expected")
    return array * np.uint8(scale)


def fit_all(images: Array, size: int, resize: str) -> tuple[Array, bool]:
    """Resize (N, H, W, C) images to (N, S, S, C) unless they are small enough to stay native; and whether they did."""
    check_resize(resize)
    if max(images.shape[1:3]) <= NATIVE_LIMIT:
        return images, True
    return np.stack([RESIZES[resize](image, size) for image in images]), False


def num_threads() -> int:
    """Threads that decode: the processors this process may use, at most 8. The result does not depend on it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, allowed))
