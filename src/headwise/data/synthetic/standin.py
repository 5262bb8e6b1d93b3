"""Stand-ins for tasks without a look-alike: one made-up class programme per class, so that everything runs anywhere.

A class is a colour pair, a striped or speckled ground and a few copies of one shape, all drawn from its name's hash;
phase, places, sizes, shade and noise differ from image to image. The classes are equally frequent and mean nothing.

Legend: N images, S = 64 pixels, C channels.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.tasks import VTABTask

SIDE = 64
SIZE = 4000
"""Examples of every upstream split."""
SHAPES = ("disc", "square", "diamond", "ring", "cross", "bar")

_ACROSS, _DOWN = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))


class StandIn:
    """A generator (see ``headwise.data.synthetic``) of a task's classes, channels and upstream splits."""

    REVISION = 1

    def __init__(self, task: VTABTask) -> None:
        self.name, self.num_classes, self.channels = task.builder or task.name, task.num_classes, task.channels
        slices = [part for text in task.splits.values() for part in text.split("+")]
        size = max(SIZE, 40 * task.num_classes)
        self.SIZES: Mapping[str, int] = {part.partition("[")[0].strip(): size for part in slices}

    def key(self, split: str, index: int) -> str:
        """The example's key: its number."""
        return str(index)

    def examples(self, split: str, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The class of each example, under ``label``."""
        return [{"label": int(index) % self.num_classes} for index in indices]

    def render(self, split: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw examples, (N, 64, 64, C)."""
        images = np.empty((len(indices), SIDE, SIDE, self.channels), dtype=np.uint8)
        for image, index in zip(images, indices, strict=True):
            drawn = _draw(_programme(self.name, int(index) % self.num_classes), _random(self.name, split, int(index)))
            image[:] = drawn.mean(axis=2, keepdims=True) if self.channels == 1 else drawn
        return images


def _random(*parts: str | int) -> np.random.RandomState:
    digest = hashlib.sha256("/".join(("standin", *map(str, parts))).encode()).digest()
    # the one generator of numpy whose numbers no later version may change
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4"))


@lru_cache(maxsize=1024)
def _programme(name: str, label: int) -> dict[str, Any]:
    """What the images of a class have in common."""
    random = _random(name, "class", label)
    hue = random.uniform()
    return {
        "ground": _colour(hue, random.uniform(0.2, 0.9), random.uniform(0.3, 0.9)),
        "ink": _colour(hue + random.uniform(0.2, 0.8), random.uniform(0.3, 1.0), random.uniform(0.3, 1.0)),
        "angle": random.uniform(0, np.pi),
        "frequency": random.uniform(3, 22),
        "ripple": random.uniform(0.1, 0.35),
        "shape": SHAPES[random.randint(len(SHAPES))],
        "count": random.randint(1, 5),
        "size": random.uniform(0.2, 0.45),
    }


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _draw(programme: Mapping[str, Any], random: np.random.RandomState) -> NDArray[np.uint8]:
    """One image of a class, (S, S, 3)."""
    angle = programme["angle"] + random.normal(0, 0.1)
    wave = np.cos(angle) * _ACROSS + np.sin(angle) * _DOWN
    stripes = np.sin(programme["frequency"] * wave + random.uniform(0, 2 * np.pi))
    image = programme["ground"] * (1 - programme["ripple"] * (1 + stripes))[..., None]
    for _ in range(programme["count"]):
        x, y = random.uniform(-0.7, 0.7, 2)
        size = programme["size"] * random.uniform(0.8, 1.25)
        image[_inside(programme["shape"], (_ACROSS - x) / size, (_DOWN - y) / size)] = programme["ink"]
    shade = random.uniform(0.75, 1.2) + random.normal(0, 0.05, 3)
    noise = random.standard_normal((SIDE, SIDE, 1)) * random.uniform(4, 20)
    return np.clip(image * shade * 255 + noise, 0, 255).astype(np.uint8)


def _inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    ax, ay = np.abs(x), np.abs(y)
    if shape == "square":
        return (ax < 0.8) & (ay < 0.8)
    if shape == "diamond":
        return ax + ay < 1.1
    if shape == "cross":
        return ((ax < 0.3) | (ay < 0.3)) & (np.maximum(ax, ay) < 1)
    if shape == "bar":
        return (ax < 1.2) & (ay < 0.3)
    distance = np.hypot(x, y)
    return (distance < 1) & (distance > 0.55) if shape == "ring" else distance < 0.9
