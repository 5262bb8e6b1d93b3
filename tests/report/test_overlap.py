"""Texts of pictures do not lie over each other or beyond the picture, measured by the font's own extents."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from headwise.comparison.comparable import ordered, places, settings
from headwise.comparison.tables import tables
from headwise.report import figures, gallery
from headwise.report.figures import Spot
from headwise.results import reading
from made_cases import each
from made_results import masked_suite

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "records"
SIZE, UP, DOWN = 11.0, 8.4, 2.4
"""Pixels of the style sheet's letters, and how far they reach from their line."""


@dataclass(frozen=True)
class Box:
    """A text where it is drawn, pixels of the picture."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            min(self.right, other.right) - max(self.left, other.left) > 0.5
            and min(self.bottom, other.bottom) - max(self.top, other.top) > 0.5
        )


def boxes(svg: str) -> list[Box]:
    """Texts of a picture. DejaVu Sans is the widest font that the page's list may end with."""
    found = []
    for element in ElementTree.fromstring(svg).iter("text"):
        text = element.text or ""
        weight = "semibold" if "headwise" in element.get("class", "") else "normal"
        font = FontProperties(family="DejaVu Sans", weight=weight)
        width = float(TextPath((0, 0), text, size=SIZE, prop=font, usetex=False).get_extents().width) if text else 0.0
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[element.get("text-anchor", "start")]
        found.append(Box(text, left, y - UP, left + width, y + DOWN))
    return found


def check(svg: str) -> list[Box]:
    root, texts = ElementTree.fromstring(svg), boxes(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    over = [(one, other) for one, other in itertools.combinations(texts, 2) if one.meets(other)]
    assert not over, over[:3]
    out = [box for box in texts if box.left < -0.5 or box.right > width + 0.5 or box.bottom > height + 0.5]
    assert not out, out[:3]
    return texts


@each("count", [3, 12, 60])
@each("seed", range(4))
def test_labels_of_points(seed: int, count: int) -> None:
    draw = random.Random(seed)
    words = ("WWW_MMM", "adalora (lr0.003)", "hs_pissa", "illi", "methods: head_lora_then_lora (r16x4)")
    spots = [
        Spot(
            10 ** draw.uniform(3, 7) if draw.random() < 0.9 else 0,
            draw.gauss(85, 1.5) if draw.random() < 0.9 else 10.0,
            draw.random(),
            f"{draw.choice(words)}{place}",
            mark=draw.choice(["", "headwise"]),
        )
        for place in range(count)
    ]
    texts = check(figures.scatter(spots, "t", "parameters without head", "accuracy, %"))
    assert any(box.text.startswith(tuple(word[:3] for word in words)) for box in texts)


@each("largest", [0.2, 1, 11, 100])
@each("spread", [0.001, 1.0, 40.0])
def test_texts_of_curves(largest: float, spread: float) -> None:
    line = [Spot(largest * part / 4, 50 + spread * (part - 2) / 4, 0.1) for part in range(5)]
    check(figures.curves({"a": line}, 50.0, "t", "heads off per layer", "accuracy, %"))


@each("low", [1, 700, 40_000])
@each("times", [1.0, 3.0, 40.0, 1e5])
def test_ticks_of_parameters(low: float, times: float) -> None:
    spots = [Spot(low, 1.0, label="a"), Spot(low * times, 2.0, label="b"), Spot(0, 1.5, label="c")]
    check(figures.scatter(spots, "t", "parameters without head", "accuracy, %"))


def test_maps_of_heads() -> None:
    phase = next(result for result in masked_suite() if result.key.method == "heart_lora").phases[0]
    check(figures.score_map(phase.masks, "t"))


def test_pictures_of_the_kept_records() -> None:
    results = ordered(reading.read(RECORDS).results)
    seen = 0
    for table, setting in zip(tables(results), settings(results), strict=True):
        where, _ = places(setting.results, common=setting.common)
        pictures = [
            *gallery.scatters(table, setting.results, where, "s"),
            *gallery.curves(setting.results, where, "s"),
            *gallery.over_shots(setting.results, where, setting.common, "s"),
            *(gallery.head_map(*phase, "s") for phase in gallery.maps(setting.results, where, "s")[:3]),
        ]
        for picture in pictures:
            check(picture.svg)
        seen += len(pictures)
    assert seen > 5
