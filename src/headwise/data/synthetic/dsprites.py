"""dSprites redrawn: the data set's own latents, keys and order, with sprites drawn from their geometry.

The original holds every combination of shape (square, ellipse, heart), scale, orientation and position once, white on
black, 64 x 64. Which combination an index means is public, so VTAB-1k's split is reproduced exactly; the pixels agree
with the original but for a few on the edges of ellipses and hearts.

Legend: N images, units are pixels, y points down, the origin is the image's upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

REVISION = 1
SIZES = {"train": 3 * 6 * 40 * 32 * 32}
SHAPE, SCALE, ORIENTATION, X, Y = range(5)
FACTORS = (3, 6, 40, 32, 32)
"""Number of values of shape, scale, orientation, x and y; y varies fastest."""
VALUES = {
    "shape": np.arange(1.0, 4.0),
    "scale": np.linspace(0.5, 1.0, 6),
    "orientation": np.linspace(0.0, 2.0 * math.pi, 40),
    "x_position": np.linspace(0.0, 1.0, 32),
    "y_position": np.linspace(0.0, 1.0, 32),
}

SIDE = 64
WINDOW = 28
"""No sprite reaches farther than WINDOW / 2 from its centre, so only that square is computed."""
SQUARE, SQUARE_ROTATED = 10.0, 9.6
ELLIPSE = (12.8, 7.2)
HEART_DISC_X, HEART_DISC_Y, HEART_RADIUS, HEART_TIP = 4.62, -4.02, 5.18, 8.77
CHUNK = 2048

_Inside = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]], NDArray[np.bool_]]


def key(split: str, index: int) -> str:
    """The example's key: its number."""
    return str(index)


def latents(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Factor values of examples, (N, 5): shape, scale, orientation, x, y, each counted from 0."""
    return np.stack(np.unravel_index(indices, FACTORS), axis=1).astype(np.int64)


def examples(split: str, indices: NDArray[np.int64]) -> list[dict[str, float]]:
    """Features of examples under upstream's names: each factor's number, ``label_``, and its value, ``value_``."""
    rows = []
    for row in latents(indices).tolist():
        factors = zip(VALUES, row, strict=True)
        values = {f"value_{name}": float(VALUES[name][number]) for name, number in factors}
        rows.append({f"label_{name}": number for name, number in zip(VALUES, row, strict=True)} | values)
    return rows


def render(split: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw examples, (N, 64, 64, 1), 255 inside of the sprite and 0 elsewhere."""
    images = np.zeros((len(indices), SIDE, SIDE), dtype=np.uint8)
    factors = latents(np.asarray(indices, dtype=np.int64))
    for shape, inside in enumerate((_in_square, _in_ellipse, _in_heart)):
        members = np.flatnonzero(factors[:, SHAPE] == shape)
        for start in range(0, len(members), CHUNK):
            _draw(images, members[start : start + CHUNK], factors, inside)
    return images[..., None]


def _draw(images: NDArray[np.uint8], members: NDArray[np.int64], factors: NDArray[np.int64], inside: _Inside) -> None:
    """Draw the sprites of one shape into ``images`` (N, 64, 64) at positions ``members``."""
    chosen = factors[members]
    scale = (0.5 + chosen[:, SCALE] / 10)[:, None, None]
    # the original's 40 orientations include both 0 and 2 pi, so the first and the last look the same
    angle = chosen[:, ORIENTATION] * (2 * math.pi / 39)
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    rotated = ((chosen[:, ORIENTATION] > 0) & (chosen[:, ORIENTATION] < 39))[:, None, None]
    centre = 16 + 32 * chosen[:, [X, Y]] / 31  # (N, 2)
    corner = np.floor(centre).astype(np.int64) - WINDOW // 2 + (centre % 1 >= 0.5)
    steps = np.arange(WINDOW)
    columns, rows = corner[:, :1] + steps, corner[:, 1:] + steps  # (N, WINDOW) each
    dx = (columns + 0.5 - centre[:, :1])[:, None, :]
    dy = (rows + 0.5 - centre[:, 1:])[:, :, None]
    local_x, local_y = cos * dx - sin * dy, sin * dx + cos * dy  # undoes a counter-clockwise rotation
    mask = inside(local_x / scale, local_y / scale, rotated)
    images[members[:, None, None], rows[:, :, None], columns[:, None, :]] = mask.astype(np.uint8) * 255


def _in_square(x: NDArray[np.float64], y: NDArray[np.float64], rotated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # the original's upright squares are a little larger than its turned ones
    half = np.where(rotated, SQUARE_ROTATED, SQUARE)
    return (np.abs(x) <= half) & (np.abs(y) <= half)


def _in_ellipse(x: NDArray[np.float64], y: NDArray[np.float64], rotated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return (x / ELLIPSE[0]) ** 2 + (y / ELLIPSE[1]) ** 2 <= 1


def _in_heart(x: NDArray[np.float64], y: NDArray[np.float64], rotated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Two discs, and the wedge between them that their outer tangents close at the tip."""
    x = np.abs(x)
    across, down = HEART_DISC_X, HEART_TIP - HEART_DISC_Y
    distance = math.hypot(across, down)
    half_angle = math.atan2(across, down) + math.asin(HEART_RADIUS / distance)
    length = math.sqrt(distance**2 - HEART_RADIUS**2)
    touch_x, touch_y = length * math.sin(half_angle), HEART_TIP - length * math.cos(half_angle)
    disc = (x - HEART_DISC_X) ** 2 + (y - HEART_DISC_Y) ** 2 <= HEART_RADIUS**2
    below_tangent = x * math.cos(half_angle) <= (HEART_TIP - y) * math.sin(half_angle)
    above_chord = (y - HEART_DISC_Y) * (touch_x - HEART_DISC_X) < (x - HEART_DISC_X) * (touch_y - HEART_DISC_Y)
    return disc | (below_tangent & ~above_chord & (y >= HEART_DISC_Y))
