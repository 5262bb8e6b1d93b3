"""SVHN look-alikes: a digit in the middle of a 32 x 32 crop of a house number, with its neighbours beside it.

Digits come from the typefaces that matplotlib ships. Colours, slant, size, blur, shading and noise vary; the classes
are as frequent as in the original. Backgrounds are plain, so this is easier than the original. Fewer images.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from headwise.errors import DataError

REVISION = 1
SIZES = {"train": 4000, "test": 4000}
SLOW = True

SIDE, SCALE = 32, 3
"""Pixels of an image, and how many times larger it is drawn."""
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
)
PRIOR = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
"""Digits 0 .. 9 of the original's training set."""


def key(split: str, index: int) -> str:
    """The example's key: its number."""
    return str(index)


def examples(split: str, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Features of examples under upstream's names."""
    return [{"label": _label(_random(split, int(index)))} for index in indices]


def render(split: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw examples, (N, 32, 32, 3)."""
    drawn = [_draw(_random(split, int(index))) for index in indices]
    return np.stack(drawn) if drawn else np.empty((0, SIDE, SIDE, 3), dtype=np.uint8)


def _random(split: str, index: int) -> np.random.RandomState:
    digest = hashlib.sha256(f"svhn_cropped/{split}/{index}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


def _label(random: np.random.RandomState) -> int:
    edges = np.cumsum(PRIOR)
    return int(np.searchsorted(edges, random.randint(edges[-1]), side="right"))


def _draw(random: np.random.RandomState) -> NDArray[np.uint8]:
    # before anything else is drawn: `examples` draws no more than this number
    digit = _label(random)
    paper, ink = _colours(random)
    font = _font(FONTS[random.randint(len(FONTS))], int(random.uniform(0.8, 1.15) * 28 * SCALE))
    mask = _number(random, digit, font)
    mask = mask.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 0.9) * SCALE))
    alpha = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    image = paper + (ink - paper) * alpha
    across, down = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    slope = random.uniform(-28, 28, 2)
    image = image + (slope[0] * across + slope[1] * down)[..., None]
    contrast = random.uniform(0.55, 1.0)
    image = image.mean() + contrast * (image - image.mean()) + random.normal(0, random.uniform(1, 7), image.shape)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _colours(random: np.random.RandomState) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Colours of ground and digits, 55 to 150 levels apart in brightness."""
    paper = random.uniform(30, 225) + random.uniform(-25, 25, 3)
    contrast = random.uniform(55, 150)
    lighter = paper.mean() + contrast < 255 and (paper.mean() - contrast < 0 or random.randint(2) == 1)
    ink = paper.mean() + (contrast if lighter else -contrast) + random.uniform(-25, 25, 3)
    return paper, ink


def _number(random: np.random.RandomState, digit: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """White digits on black, the labelled one in the middle, sheared and turned; SCALE times too large."""
    length = random.randint(1, 4)
    place = random.randint(length)
    others = random.randint(0, 10, 3)
    side = 3 * SIDE * SCALE
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    step = font.getlength("0") * random.uniform(1.0, 1.2)
    for position in range(length):
        text = str(digit if position == place else others[position])
        pen.text((side / 2 + (position - place) * step, side / 2), text, fill=255, font=font, anchor="mm")
    shear, angle = random.uniform(-0.25, 0.25), math.radians(random.uniform(-7, 7))
    cos, sin, middle, offset = math.cos(angle), math.sin(angle), side / 2, SIDE * SCALE / 2
    a, b, d, e = cos, sin + shear, -sin, cos
    shift = random.uniform(-1.5, 1.5, 2) * SCALE
    c, f = middle - a * offset - b * offset + shift[0], middle - d * offset - e * offset + shift[1]
    size = (SIDE * SCALE, SIDE * SCALE)
    return canvas.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise DataError("the digits of the SVHN look-alikes come from matplotlib's typefaces: pip install matplotlib")
    file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    try:
        return ImageFont.truetype(str(file), size)
    except OSError as error:
        raise DataError(f"typeface {str(file)!r} cannot be read ({error}); reinstall matplotlib") from error
