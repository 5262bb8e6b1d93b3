"""One style for all pictures of the analyses: the colours of the report, the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextPath

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of lines, told apart by the colour-blind as well (Okabe and Ito); the first are the report's blue, orange, green."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes of points: colour is never all that tells lines apart."""
NULL = "#8b9098"
"""Of everything random."""
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
"""Maps of colours: of values about zero, and of values from zero."""
ABSENT, ABSENT_WORDS = "#d3d5d8", "no update (gated off, or none learned)"
"""Of what is not there, hatched: no value of any map has this colour."""
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
Item = TypeVar("Item")
DPI = 130
MOST_PANELS = 24
"""Of one picture: what has more is split over several."""
WIDEST = 13.0
"""Inches that panels beside each other take, about."""
_NARROWEST = 5.0
"""Inches of a picture, so that its title and legend have room."""
_BESIDE_PANEL = 0.7
"""Inches that the numbers and the name of an axis take."""


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of this project inside the block; every drawing and every saving stands in one."""
    with matplotlib.rc_context(_RC):
        yield


@contextlib.contextmanager
def picture(
    num_rows: int = 1, num_columns: int = 1, *, panel: tuple[float, float], title: str = "", **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes, (rows, columns), to draw on inside the block.

    At its end the words are broken to the width that they have, one legend of everything with a label is put below, and
    the figure grows or shrinks until each panel has its size: panels are as readable of many runs as of one.

    Args:
        panel: width and height of each, without what is written around it, inches.
        options: of ``Figure.subplots``.
    """
    with styled():
        width, height = num_columns * (panel[0] + _BESIDE_PANEL) + 2.0, num_rows * (panel[1] + 1.5) + 2.0
        made = Figure(figsize=(width, height), layout="constrained")
        axes = made.subplots(num_rows, num_columns, squeeze=False, **options)
        yield made, axes
        _break_words(made, axes, panel)
        room = max(_NARROWEST, num_columns * panel[0] + 0.3 * num_columns) - 0.4  # the figure is no narrower
        lines = _legend(made, axes, room)
        if title:
            made.suptitle(wrapped(title, room, _RC["figure.titlesize"], "bold"))
            lines += made.get_suptitle().count("\n") + 1
        made.set_figheight(height + 0.25 * lines)
        _fit(made, axes, panel)


def across(count: int, width: float) -> int:
    """How many panels of a width stand beside each other, so that rows are equally full."""
    most = max(1, int(WIDEST / (width + _BESIDE_PANEL)))
    return math.ceil(count / math.ceil(count / most))


def parted(
    name: str, items: Sequence[Item], draw: Callable[[Sequence[Item]], Figure], most: int = MOST_PANELS
) -> dict[str, Figure]:
    """Draw one picture, none of nothing, or several where there are more items than one takes."""
    count = max(1, math.ceil(len(items) / most))
    size = max(1, math.ceil(len(items) / count))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return {name if count == 1 else f"{name}-{index}": draw(part) for index, part in enumerate(parts, 1)}


def _fit(made: Figure, axes: Any, panel: tuple[float, float]) -> None:
    """Give the figure the size at which its panels have theirs."""
    num_rows, num_columns = axes.shape
    engine = made.get_layout_engine()
    for _ in range(3):  # colour bars are shares of the figure: what they take changes with it
        if engine is not None:
            engine.execute(made)  # as drawing does, which takes far longer
        cells = [axis.get_position(original=True) for axis in axes.flat]
        width, height = made.get_size_inches()
        wider = num_columns * (panel[0] - width * min(cell.width for cell in cells))
        higher = num_rows * (panel[1] - height * min(cell.height for cell in cells))
        made.set_size_inches(max(width + wider, _NARROWEST), height + higher)
        if max(abs(wider), abs(higher)) < 0.3:
            break


def _break_words(made: Figure, axes: Any, panel: tuple[float, float]) -> None:
    """Break titles and names of axes to the size of a panel, and those of colour bars to its height."""
    for axis in made.axes:
        is_panel = any(axis is one for one in axes.flat)
        texts = [(text, panel[0]) for text in axis.get_children() if isinstance(text, Text)] if is_panel else []
        for text, room in (*texts, (axis.xaxis.label, panel[0]), (axis.yaxis.label, max(panel[1], 1.2))):
            text.set_text(wrapped(text.get_text(), room, float(text.get_fontsize()), str(text.get_fontweight())))


def _legend(made: Figure, axes: Any, room: float) -> int:
    """One legend of all panels, below them, at most as wide as the room; returns its lines."""
    known: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if not known:
        return 0
    size = float(_RC["legend.fontsize"])
    beside = 0.6  # inches of a line's sample and of the space between columns
    widths = [_width(label, size, "normal") + beside for label in known]
    fit = [n for n in range(2, min(len(widths), 6) + 1) if sum(map(max, np.array_split(widths, n))) <= room]
    columns = max(fit, default=1)
    words = [wrapped(label, room - beside, size) for label in known]
    made.legend(list(known.values()), words, loc="outside lower center", ncols=columns)
    return sum(word.count("\n") + 1 for word in words)


def wrapped(text: str, room: float, size: float, weight: str = "normal") -> str:
    """Break a text behind spaces, commas and the signs that names are made with, within words only if it must be.

    Args:
        text: with line breaks that stay.
        room: inches.
        size: of the letters, points.
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in re.split(r"(?<=[\s,/_-])", paragraph):
            if line and _width((line + piece).rstrip(), size, weight) > room:
                lines.append(line.rstrip())
                line = ""
            line += piece
            while len(line) > 1 and _width(line.rstrip(), size, weight) > room:
                fits = max(1, sum(_width(line[:end], size, weight) <= room for end in range(1, len(line))))
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line.rstrip())
    return "\n".join(lines)


@functools.lru_cache(maxsize=8192)
def _width(text: str, size: float, weight: str) -> float:
    """Of a line, inches."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=_RC["font.family"], weight=weight)
    # letters of few pixels are drawn a little wider than they are
    return 1.07 * float(TextPath((0, 0), text, size=size, prop=font).get_extents().x1) / 72


def look(number: int) -> dict[str, Any]:
    """Colour and shape of a line; beyond the colours in other shapes and dashed, beyond all shapes hollow."""
    turn = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "markerfacecolor": "white" if turn // len(MARKERS) % 2 else None,
        "linestyle": "--" if turn else "-",
    }


def scale_of(values: Any, diverging: bool = False) -> tuple[float, float]:
    """Ends of a scale of colours: about zero, or from zero; zero keeps its colour where there is nothing else."""
    table = np.asarray(values, dtype=float)
    finite = table[np.isfinite(table)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    if finite.size and not np.ptp(finite):
        largest *= 2  # what does not vary is neither little nor much
    largest = largest or 1.0
    return (-largest if diverging or (finite.size and finite.min() < 0) else 0.0), largest


def head_map(
    axis: Axes,
    values: Any,
    *,
    layers: Sequence[str],
    scale: tuple[float, float] | None = None,
    diverging: bool = False,
    marked: Any = None,
    said: str = "",
    absent: Any = None,
) -> Any:
    """Draw values of heads: a row per layer, a column per head; returns the image, for a colour bar.

    Args:
        values: (layers, heads); NaN leaves a place empty.
        scale: its ends, so that panels can share one; their own if left out.
        diverging: whether the scale is about zero.
        marked: (layers, heads), true where a cross is to stand.
        said: what a cross means.
        absent: (layers, heads), true where no update is, whatever the value.
    """
    table = np.asarray(values, dtype=float)
    if absent is not None:
        table = np.where(absent, np.nan, table)
    low, high = scale or scale_of(table, diverging)
    image = axis.imshow(table, cmap=DIVERGING if diverging else SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
    num_layers, num_heads = table.shape
    every, beside = math.ceil(num_layers / 16), math.ceil(num_heads / 16)
    axis.set_yticks(range(0, num_layers, every), list(layers)[::every])
    axis.set_xticks(range(0, num_heads, beside))
    bare(axis)
    if absent is not None:
        hatched(axis, absent, ABSENT_WORDS)
    if marked is not None:
        rows, columns = np.nonzero(np.asarray(marked))
        for color, width, label in (("white", 2.6, None), ("black", 1.1, said)):  # seen on every colour
            axis.plot(
                columns, rows, "x", color=color, markersize=6, markeredgewidth=width, linestyle="none", label=label
            )
    return image


def bare(axis: Axes) -> None:
    """Take the frame and the ticks from around an image."""
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def hatched(axis: Axes, places: Any, label: str) -> None:
    """Hatch cells of an image, for the legend as what the label says; nothing where there is none."""
    rows, columns = np.nonzero(np.asarray(places))
    if len(rows):
        x, y = axis.get_xlim(), axis.get_ylim()
        axis.bar(columns, 1.0, 1.0, rows - 0.5, color=ABSENT, hatch="/////", edgecolor=NULL, linewidth=0.0, label=label)
        axis.set(xlim=x, ylim=y)


def layer_ticks(axis: Axes, layers: Sequence[str]) -> None:
    """Name layers along an axis, as many as have room."""
    every = math.ceil(len(layers) / (12 if max(map(len, layers)) < 3 else 8))
    axis.set_xticks(range(0, len(layers), every), list(layers)[::every])


def banded(axis: Axes, x: Sequence[Any], value: Any, null: Any, number: int, label: str) -> None:
    """Draw a line, a band, or a line over the band of random updates in the same colour.

    Args:
        value: of each; None for a band alone.
        null: with ``mean``, ``low`` and ``high`` of each; None for a line alone.
        number: of colour and marker.
        label: for the legend, of the line if there is one.
    """
    color = COLORS[number]
    if null is not None:
        low, high = (np.asarray(end, dtype=float) for end in (null.low, null.high))
        mean = np.asarray(null.mean, dtype=float)
        axis.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0, label=label if value is None else None)
        axis.plot(x, mean, color=color, linewidth=0.9, linestyle=(0, (3, 2)))
        alone = _alone(low)  # an area over a single place has no width
        if alone.any():
            there = np.asarray(x)[alone]
            axis.vlines(there, low[alone], high[alone], color=color, alpha=0.22, linewidth=_WIDE)
            axis.plot(there, mean[alone], color=color, linestyle="none", marker="_", markersize=_WIDE)
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


_WIDE = 14.0
"""Points of a band over a single place."""


def _alone(values: Any) -> Any:
    """Whether each value is there, and none beside it."""
    there = np.isfinite(values)
    around = np.concatenate([[False], there, [False]])
    return there & ~around[:-2] & ~around[2:]
