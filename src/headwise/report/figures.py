"""Pictures for the report, as SVG text. Colours are those of the page's style sheet, so that both colour schemes work.

Lengths are in pixels of the picture's own frame. Everything drawn from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from headwise.report.headmap import HeadMap, Rows, head_maps
from headwise.report.limits import robust

WIDTH, HEIGHT = 352, 236
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 22, 36
LINE = 12.0
"""Height that a label is given when labels are placed."""
LETTERS = {"ijlfI|!'.,:; ": 3.9, "rst()[]-_/*": 5.8, "mwMW@%": 11.0}
"""Widths of letters in pixels, as large as in any font that the page may get; see `_width`."""
STRIP = 200
SHAPES = ("circle", "square", "triangle", "diamond")
NUM_COLORS = 6
_LONGEST = 24
_APART = 12
"""Dots in a row that are told apart as rings; more are drawn as tints."""


@dataclass(frozen=True)
class Spot:
    """A point of a picture.

    Attributes:
        std: of y, drawn as a bar; None or NaN where there is none.
        label: written beside it where there is room.
        tip: said when it is pointed at.
        mark: class of the style sheet.
    """

    x: float
    y: float
    std: float | None = None
    label: str = ""
    tip: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Axis:
    """One direction of a picture: from value to pixel.

    Attributes:
        low, high: values at its ends.
        start, end: pixels at its ends.
        is_log: whether values are placed by their logarithm.
        has_zero: whether a logarithmic axis begins with a place for 0, apart from the rest.
        least: smallest step between ticks.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    has_zero: bool = False
    least: float = 0.0

    def at(self, value: float) -> float:
        """Pixel of a value."""
        if not self.is_log:
            return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        if value <= 0:
            return self.start
        room = 0.14 if self.has_zero else 0.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (room + (1 - room) * share) * (self.end - self.start)

    def beyond(self, value: float) -> int:
        """1 above the high end, -1 below the low one, else 0."""
        return (value > self.high) - (value < self.low)

    def within(self, value: float) -> float:
        """Pixel of a value, or of the end that it is beyond."""
        return self.at(min(max(value, self.low), self.high))

    def ticks(self, count: int = 4) -> list[float]:
        """Round values within, about so many; on a logarithmic axis powers of ten, or 1, 2 and 5 of each."""
        if not self.is_log:
            return steps(self.low, self.high, count, self.least)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        marks: list[float] = []
        for digits in ((1,), (1, 3), (1, 2, 5)):
            marks = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
            if len(marks) >= 3:
                break
        return [0.0, *marks] if self.has_zero else marks


def rounded(largest: float) -> float:
    """The next round value: 1, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    return next(round(digit * power, 10) for digit in (1, 2, 3, 4, 5, 6, 8, 10) if digit * power >= largest * 0.999)


def steps(low: float, high: float, count: int = 4, least: float = 0.0) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two values, about so many, no closer than ``least``."""
    raw = max((high - low) / count, least)
    power = 10.0 ** math.floor(math.log10(raw))
    # a power of ten is not exact: without the slack here and below a step that fits would be passed over
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def scatter(spots: Sequence[Spot], title: str, x_label: str, y_label: str) -> Markup:
    """Points over a logarithmic axis, labelled where there is room; far ones are arrows at the end."""
    positive = [spot.x for spot in spots if spot.x > 0] or [1.0]
    has_zero = any(spot.x <= 0 for spot in spots)
    across = Axis(min(positive) / 1.6, max(positive) * 1.6, LEFT + 6, WIDTH - RIGHT, True, has_zero)
    up = _up(spots)
    spots = [replace(spot, label=f"{spot.label}: {spot.y:.1f}") if up.beyond(spot.y) else spot for spot in spots]
    pixels = [(across.at(spot.x), _height(spot, up)) for spot in spots]
    parts = [_frame(across, up, x_label, y_label)]
    for spot, place in zip(spots, pixels, strict=True):
        parts += [_bar(spot, place[0], up), _dot(place, _kind("circle", spot, up), spot)]
    return _svg(title, Markup().join([*parts, *_labels(spots, pixels)]))


def curves(lines: Mapping[str, Sequence[Spot]], level: float | None, title: str, x_label: str, y_label: str) -> Markup:
    """Lines, each with a colour and a shape of its own, and a dashed level across."""
    spots = [spot for line in lines.values() for spot in line]
    largest = max(max(spot.x for spot in spots), 2.0)
    across = Axis(0.0, largest * 1.04, LEFT + 6, WIDTH - RIGHT, least=1.0)
    up = _up(spots, [] if level is None else [level])
    parts = [_frame(across, up, x_label, y_label)]
    if level is not None:
        y = up.at(level)
        parts.append(tag("line", class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    for number, line in enumerate(lines.values()):
        places = [(across.at(spot.x), _height(spot, up)) for spot in line]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
        inner = [tag("path", class_="line", d=path)] if len(line) > 1 else []
        for spot, place in zip(line, places, strict=True):
            inner += [_bar(spot, place[0], up), _dot(place, _kind(shape(number), spot, up), spot)]
        parts.append(tag("g", *inner, class_=color(number)))
    return _svg(title, Markup().join(parts))


def swatch(number: int | None) -> Markup:
    """The mark of a line for a legend; None is the dashed level."""
    if number is None:
        inner = tag("line", class_="level", x1=0, x2=22, y1=6, y2=6)
    else:
        dot = _dot((11, 6), shape(number), Spot(0, 0))
        inner = tag("g", tag("path", class_="line", d="M0 6H22"), dot, class_=color(number))
    return tag("svg", inner, class_="swatch", width=22, height=12, viewBox="0 0 22 12", aria_hidden="true")


def strip(
    values: Sequence[float], mean: float, interval: tuple[float | None, float | None], largest: float, title: str
) -> Markup:
    """Values, their mean and its interval about a zero line; ``largest`` is at either end, beyond it are arrows."""
    axis = Axis(-largest, largest, 6, STRIP - 6)
    sign = "gain" if mean > 0 else "loss" if mean < 0 else "even"
    dot = "pair" if len(values) <= _APART else "pair many"
    parts = [
        tag("line", class_="rule", x1=0, x2=STRIP, y1=11, y2=11),
        tag("line", class_="zero", x1=axis.at(0), x2=axis.at(0), y1=0, y2=22),
        *(tag("circle", class_=dot, cx=axis.at(value), cy=11, r=3.2) for value in values if not axis.beyond(value)),
        *_interval(*interval, axis),
        *(
            []
            if axis.beyond(mean)
            else [tag("path", class_="mean", d=f"M{axis.at(mean):.1f} 3.5l4 7.5l-4 7.5l-4 -7.5z")]
        ),
        *_arrows([*values, mean], axis),
    ]
    return _svg(title, tag("g", *parts, class_=sign), STRIP, 22, "strip")


def _interval(low: float | None, high: float | None, axis: Axis) -> list[Markup]:
    if low is None or high is None:
        return []
    start, end = axis.within(low), axis.within(high)
    return [tag("path", class_="interval", d=f"M{start:.1f} 5v12m0 -6H{end:.1f}m0 -6v12")]


def _arrows(values: Sequence[float], axis: Axis) -> list[Markup]:
    """An arrow at each end that values are beyond, which says them."""
    drawn = []
    for side, d in ((-1, "M0 11l8 -7v14z"), (1, f"M{STRIP} 11l-8 -7v14z")):
        if far := [value for value in values if axis.beyond(value) == side]:
            said = ", ".join(dict.fromkeys(f"{value:+.2f}" for value in far))
            drawn.append(tag("path", tag("title", said), class_="far", d=d))
    return drawn


def score_map(rows: Rows, title: str) -> Markup:
    """One panel per projection: a row per layer, a column per head, a cross on every head that is off.

    Colour is the score, over the largest of its panel; a panel without scores has one tint for heads that are on.

    Args:
        rows: of each projection ``stage, block, proj, active, score``.
    """
    panels = head_maps(rows)
    num_heads = max(panel.num_heads for panel in panels)
    room, gap = 26, 18
    # Panels stand side by side as long as a head keeps the 8 pixels that a pointer can hit, else below each other.
    beside = 1 if (WIDTH - room) / len(panels) - gap < 8 * num_heads else len(panels)
    cell = min(22.0, ((WIDTH - room) / beside - gap * (beside > 1)) / num_heads)
    parts, top, bottom = [], 0.0, 0.0
    for number, panel in enumerate(panels):
        column = number % beside
        if column == 0:
            top = bottom
        left = room + column * (num_heads * cell + gap)
        parts.append(_panel(panel, left, top + 18, cell, column == 0))
        bottom = max(bottom, top + 18 + cell * len(panel.layers) + 24)
    return _svg(title, Markup().join(parts), WIDTH, round(bottom))


def _panel(panel: HeadMap, left: float, top: float, cell: float, named: bool) -> Markup:
    every = max(1, math.ceil(10 / cell))  # names of layers that would lie over each other are left out
    parts, crosses = [tag("text", panel.name, class_="head", x=left, y=top - 6)], []
    for number, (layer, scores, on) in enumerate(zip(panel.layers, panel.scores, panel.active, strict=True)):
        y = top + number * cell
        if named and number % every == 0:
            parts.append(tag("text", layer, x=left - 5, y=y + cell / 2 + 3.5, text_anchor="end"))
        for head, active in enumerate(on):
            score = None if scores is None else scores[head]
            written = "" if score is None else f", score {score:.3g}"
            tint = "flat" if score is None else "high" if score > 0 else "low"
            opacity = 1 if score is None else round(abs(score) / panel.largest, 3)
            tip = tag("title", f"{panel.name}, layer {layer}, head {head}{written}{'' if active else ', off'}")
            x = left + head * cell
            parts.append(tag("rect", tip, class_=tint, x=x, y=y, width=cell - 1, height=cell - 1, fill_opacity=opacity))
            if not active:
                reach = cell * 0.5 - 1
                corner = f"M{x + reach / 2:.1f} {y + reach / 2:.1f}"
                crosses.append(f"{corner}l{reach:.1f} {reach:.1f}m0 {-reach:.1f}l{-reach:.1f} {reach:.1f}")
    foot = top + len(panel.layers) * cell + 12
    # The halo below each cross keeps it visible on the darkest tint, in both colour schemes.
    if crosses:
        parts += [tag("path", class_=kind, d="".join(crosses)) for kind in ("cross halo", "cross")]
    for head in range(0, panel.num_heads, every if cell >= 14 else 2 * every):
        parts.append(tag("text", head, x=left + (head + 0.5) * cell - 0.5, y=foot, text_anchor="middle"))
    return tag("g", *parts)


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """One element; text and attributes are escaped, ``class_`` and ``stroke_width`` are written as SVG has them."""
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    opening = f"{name}{''.join(pairs)}"
    inner = Markup().join(children)
    return Markup(f"<{opening}>{inner}</{name}>") if inner else Markup(f"<{opening}/>")


def color(number: int) -> str:
    """Class of the style sheet for the line of that number."""
    return f"c{number % NUM_COLORS + 1}"


def shape(number: int) -> str:
    """Shape of the points of the line of that number: colour is never all that tells lines apart."""
    return SHAPES[number % len(SHAPES)]


def _value(value: Any) -> str:
    if not isinstance(value, float):
        return str(escape(value))
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}".removesuffix(".0")


def _svg(title: str, inner: Markup, width: int = WIDTH, height: int = HEIGHT, kind: str = "plot") -> Markup:
    box = f"0 0 {width} {height}"
    return tag("svg", inner, class_=kind, viewBox=box, width=width, height=height, role="img", aria_label=title)


def _up(spots: Sequence[Spot], levels: Sequence[float] = ()) -> Axis:
    """The axis of accuracies: what is not far from the rest, all levels, and a margin, at least one point high."""
    low, high = robust([spot.y for spot in spots])
    near = [spot for spot in spots if low <= spot.y <= high]
    ends = robust([spot.y + sign * (_deviation(spot) or 0.0) for spot in near for sign in (-1, 1)])
    low, high = min(low, *ends, *levels), max(high, *ends, *levels)
    margin = max(0.08 * (high - low), 0.5)
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _height(spot: Spot, up: Axis) -> float:
    """Pixel of a point; of one beyond the axis a place at its end where an arrow fits."""
    return up.within(spot.y) + 7 * up.beyond(spot.y)


def _kind(kind: str, spot: Spot, up: Axis) -> str:
    return {1: "above", -1: "below"}.get(up.beyond(spot.y), kind)


def _deviation(spot: Spot) -> float | None:
    return spot.std if spot.std is not None and spot.std == spot.std else None


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> Markup:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(tag("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", _short(tick), x=LEFT - 6, y=y + 3.8, text_anchor="end"))
    floor = HEIGHT - BOTTOM
    for tick in across.ticks(6):
        x = across.at(tick)
        parts.append(tag("line", class_="tick", x1=x, x2=x, y1=floor, y2=floor + 4))
        parts.append(tag("text", _short(tick), x=x, y=floor + 15, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor))
    parts.append(tag("text", y_label, class_="name", x=2, y=11))
    parts.append(tag("text", x_label, class_="name", x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end"))
    return tag("g", *parts, class_="frame")


def _bar(spot: Spot, x: float, up: Axis) -> Markup:
    deviation = _deviation(spot)
    if not deviation or up.beyond(spot.y):
        return Markup()
    return tag(
        "line",
        class_=f"bar {spot.mark}".strip(),
        x1=x,
        x2=x,
        y1=up.within(spot.y - deviation),
        y2=up.within(spot.y + deviation),
    )


def _dot(place: tuple[float, float], kind: str, spot: Spot) -> Markup:
    x, y = place
    tip = [tag("title", spot.tip)] if spot.tip else []
    name = f"dot {spot.mark}".strip()
    if kind == "circle":
        return tag("circle", *tip, class_=name, cx=x, cy=y, r=4)
    paths = {"square": "m-3.5 -3.5h7v7h-7z", "triangle": "m0 -4.5l4.5 8h-9z", "diamond": "m0 -5l5 5l-5 5l-5 -5z"}
    paths |= {"above": "m0 -6l5 6h-3v6h-4v-6h-3z", "below": "m0 6l5 -6h-3v-6h-4v6h-3z"}
    return tag("path", *tip, class_=name, d=f"M{x:.1f} {y:.1f}{paths[kind]}")


def _labels(spots: Sequence[Spot], pixels: Sequence[tuple[float, float]]) -> list[Markup]:
    """Names beside points, right, left, above or below, where nothing else is; the rest go without."""
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in pixels]
    parts = []
    # who comes first gets the room: head-wise methods, then the most accurate
    for spot, (x, y) in sorted(zip(spots, pixels, strict=True), key=lambda p: (not p[0].mark, -p[0].y)):
        text = spot.label if len(spot.label) <= _LONGEST else f"{spot.label[: _LONGEST - 2]}.."
        width = _width(text, bool(spot.mark))
        places = ((x + 8, y + 4, "start"), (x - 8, y + 4, "end"), (x, y - 8, "middle"), (x, y + 16, "middle"))
        for at, base, anchor in places:
            left = at - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, base - LINE + 3, left + width, base + 3)
            # a label may reach 8 pixels above the frame: the axis' name stands higher
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(tag("text", text, class_=f"label {spot.mark}".strip(), x=at, y=base, text_anchor=anchor))
                break
    return parts


def _width(text: str, is_bold: bool) -> float:
    """Pixels that a label may take."""
    plain = sum(
        next(
            (width for letters, width in LETTERS.items() if letter in letters),
            7.1 if letter.islower() or letter.isdigit() else 9.0,
        )
        for letter in text
    )
    return plain * 1.15 if is_bold else plain


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
