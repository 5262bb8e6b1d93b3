"""What is seen in a picture: sizes of panels, boxes of words, colours; and made tables to draw pictures of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

LONG = "img_size70-weightsvit_small_patch14_dinov2_imgfocus_fp16_265cac3b"


def panels_of(figure: Figure) -> list[Axes]:
    """The panels that show something, without colour bars."""
    return [axis for axis in figure.axes if axis.axison and axis.get_label() != "<colorbar>"]


def lay_out(figure: Figure) -> None:
    """Give everything its place, once: that takes most of the time."""
    if figure.get_label() != "laid out":
        figure.draw_without_rendering()
        figure.set_label("laid out")


def sizes_of(figure: Figure) -> list[tuple[float, float]]:
    """Of each panel, inches."""
    lay_out(figure)
    width, height = figure.get_size_inches()
    places = [axis.get_position(original=True) for axis in panels_of(figure)]
    return [(place.width * width, place.height * height) for place in places]


def words_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Titles, names of axes, and the legend, with their boxes."""
    lay_out(figure)
    texts: list[Text] = [text for text in figure.texts if text.get_text()]
    for axis in figure.axes:
        texts += [axis.xaxis.label, axis.yaxis.label]
        if axis.axison:
            texts += [text for text in axis.get_children() if isinstance(text, Text)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]


def check_readable(figure: Figure) -> None:
    """Words lie within the picture and not on each other, and no panel is small."""
    words = words_of(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for word, box in words:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{word!r} is cut"
    for (one, a), (other, b) in itertools.combinations(words, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} lies on {other!r}"
    assert min(min(size) for size in sizes_of(figure)) > 0.9


def names(count: int) -> list[str]:
    """Of runs that differ in all that names can say."""
    return [f"heart_lora, {('eurosat', 'caltech101')[i % 2]}, {LONG}-ne{i}-rank{2**i}, seed {i}" for i in range(count)]


def heads_table(runs: Sequence[str], projections: str = "qv", layers: int = 4, heads: int = 6) -> pd.DataFrame:
    """Every head's numbers of each run; the last head of each layer has no update."""
    random = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for run, projection, block, head in itertools.product(runs, projections, range(layers), range(heads)):
        numbers = {name: float(random.normal()) for name in ("loss_rise", "taylor_neg", "gain")}
        live = int(head < heads - 1)
        place = {"stage": 0, "block": block, "projection": projection, "head": head, "heads": heads}
        lines.append({"run": run, **place, "gate": live, "live": live, **{n: v * live for n, v in numbers.items()}})
    return pd.DataFrame(lines)
