"""One style for all pictures of the analyses: the colours of the report, the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of lines, told apart by the colour-blind as well (Okabe and Ito); the first are the report's blue, orange, green."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes of points: colour is never all that tells lines apart."""
NULL = "#8b9098"
"""Of everything random."""
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
"""Maps of colours: of values about zero, and of values from zero."""
INK, SOFT, RULE = "#1b1d20", "#5a606a", "#dedfd9"
_RC: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#8b9098",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "nearest",
    "svg.hashsalt": "headwise",
    "svg.fonttype": "none",
}
DPI = 130


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of this project inside the block; every drawing and every saving stands in one."""
    with matplotlib.rc_context(_RC):
        yield


def figure(num_rows: int = 1, num_columns: int = 1, *, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, (rows, columns).

    Args:
        num_rows, num_columns: of panels.
        size: of the whole, inches.
        options: of ``Figure.subplots``.
    """
    made = Figure(figsize=size, layout="constrained")
    return made, made.subplots(num_rows, num_columns, squeeze=False, **options)


def head_map(
    axis: Axes,
    values: Any,
    *,
    layers: Sequence[str],
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    marked: Any = None,
) -> Any:
    """Draw values of heads: a row per layer, a column per head; returns the image, for a colour bar.

    Args:
        axis: of the panel.
        values: (layers, heads); NaN leaves a place empty.
        layers: names of the rows.
        low, high: ends of the scale, so that panels can share one; their own if left out.
        diverging: whether the scale is about zero.
        marked: (layers, heads), true where a cross is to stand.
    """
    table = np.asarray(values, dtype=float)
    finite = table[np.isfinite(table)]
    if high is None:
        high = float(np.abs(finite).max() if diverging else finite.max()) if finite.size else 1.0
    if low is None:
        low = -high if diverging else 0.0
    if not low < high:
        high = low + 1.0
    image = axis.imshow(table, cmap=DIVERGING if diverging else SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
    num_layers, num_heads = table.shape
    every, beside = math.ceil(num_layers / 16), math.ceil(num_heads / 16)
    axis.set_yticks(range(0, num_layers, every), list(layers)[::every])
    axis.set_xticks(range(0, num_heads, beside))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if marked is not None:
        rows, columns = np.nonzero(np.asarray(marked))
        for color, width in (("white", 2.6), ("black", 1.1)):  # seen on every colour
            axis.plot(columns, rows, "x", color=color, markersize=6, markeredgewidth=width, linestyle="none")
    return image


def banded(
    axis: Axes, x: Sequence[Any], value: Any, null: Any, number: int, label: str, highest: float = math.inf
) -> None:
    """Draw a line, a band, or a line over the band of random updates in the same colour.

    Args:
        axis: of the panel.
        x: places of the points.
        value: of each; None for a band alone.
        null: with ``mean``, ``low`` and ``high`` of each; None for a line alone.
        number: of colour and marker.
        label: for the legend, of the line if there is one.
        highest: that can be; a band ends there.
    """
    color = COLORS[number]
    if null is not None:
        low, high = (np.asarray(end, dtype=float) for end in (null.low, null.high))
        high = np.minimum(high, highest)
        axis.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0, label=label if value is None else None)
        axis.plot(x, np.asarray(null.mean, dtype=float), color=color, linewidth=0.9, linestyle=(0, (3, 2)))
    if value is not None:
        # a line of a lower number is wider, so that it is seen where another lies on it
        axis.plot(
            x,
            np.asarray(value, dtype=float),
            color=color,
            marker=MARKERS[number],
            label=label,
            linewidth=max(1.4, 3.2 - 1.6 * number),
            markersize=max(4.0, 7.0 - 3.0 * number),
        )
