"""smallNORB look-alikes: grey toys of five kinds on a turntable, drawn by a small ray-caster.

As in the original: 5 kinds of 10 toys, toys 4, 6, 7, 8, 9 to train and 0, 1, 2, 3, 5 to test, elevations of 30 to 70
degrees in steps of 5, azimuths in steps of 20. Of the original's six lightings each view has one, so a split holds a
sixth of the original's images. Every toy faces the same way at azimuth 0, and front, back, left and right differ.

Legend: lengths in units of about half a toy, x is a toy's front, y its left, z up.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.synthetic import rays
from headwise.data.synthetic.rays import BALL, CUBE, CYLINDER, Camera, Lamp, Solid

REVISION = 1
KINDS = ("animal", "human", "plane", "truck", "car")
TOYS = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}
ELEVATIONS, AZIMUTHS, LIGHTINGS = 9, 18, 6
GRID = (len(KINDS), 5, ELEVATIONS, AZIMUTHS)
"""Kind, toy, elevation, azimuth; azimuth varies fastest."""
SIZES = {split: math.prod(GRID) for split in TOYS}
SLOW = True

SIDE = 96
DISTANCE, FOCAL = 6.0, 1.6
AMBIENT, GROUND = 0.3, 0.85
NOISE = 2.5
"""Standard deviation of the sensor's noise, in levels of 255."""


def key(split: str, index: int) -> str:
    """The example's key: its number."""
    return str(index)


def factors(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Kind, position of the toy in its split, elevation and azimuth of examples, (N, 4), each counted from 0."""
    return np.stack(np.unravel_index(indices, GRID), axis=1).astype(np.int64)


def lighting(split: str, index: int) -> int:
    """Which of the six lightings an example has."""
    return hashlib.sha256(f"smallnorb/light/{split}/{index}".encode()).digest()[0] % LIGHTINGS


def examples(split: str, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Features of examples under upstream's names."""
    rows = []
    for index, (kind, toy, elevation, azimuth) in zip(indices, factors(np.asarray(indices)).tolist(), strict=True):
        rows.append(
            {
                "instance": TOYS[split][toy],
                "label_category": kind,
                "label_elevation": elevation,
                "label_azimuth": azimuth,
                "label_lighting": lighting(split, int(index)),
            }
        )
    return rows


def render(split: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Draw examples, (N, 96, 96, 1)."""
    images = np.empty((len(indices), SIDE, SIDE, 1), dtype=np.uint8)
    ground = np.full(3, GROUND, dtype=np.float32)
    for image, index, row in zip(images, indices, factors(np.asarray(indices)).tolist(), strict=True):
        kind, toy, elevation, azimuth = row
        solids = _toy(kind, TOYS[split][toy])
        lamp = _lamp(lighting(split, int(index)), azimuth)
        light = rays.shade(_camera(elevation, azimuth), solids, (lamp,), ground, AMBIENT)
        seed = np.frombuffer(hashlib.sha256(f"smallnorb/{split}/{index}".encode()).digest(), dtype="<u4")
        noise = NOISE * np.random.RandomState(seed).standard_normal((SIDE, SIDE))
        image[..., 0] = np.clip(light[..., 0] * 255 + noise + 0.5, 0, 255).astype(np.uint8)
    return images


def _camera(elevation: int, azimuth: int) -> Camera:
    target = np.array([0.0, 0.0, 0.6])
    angles = math.radians(20 * azimuth), math.radians(30 + 5 * elevation)
    return rays.looking_at(target, *angles, DISTANCE, FOCAL, SIDE)


def _lamp(number: int, azimuth: int) -> Lamp:
    """Six lightings: three directions, bright or dim. They stand still beside the camera: only the toy turns."""
    angle = math.radians(40 + 120 * (number % 3) + 20 * azimuth)
    place = np.array([6 * math.cos(angle), 6 * math.sin(angle), 7.0], dtype=np.float32)
    return Lamp(place, 0.85 if number < 3 else 0.5, 0.6)


@lru_cache(maxsize=64)
def _toy(kind: int, number: int) -> tuple[Solid, ...]:
    """The solids of toy ``number`` of a kind; its proportions and greys are its own."""
    seed = np.frombuffer(hashlib.sha256(f"smallnorb/{KINDS[kind]}/{number}".encode()).digest(), dtype="<u4")
    return tuple(_BUILDERS[kind](_Parts(np.random.RandomState(seed))))


class _Parts:
    """Random proportions of one toy, and its solids."""

    def __init__(self, random: np.random.RandomState) -> None:
        self.random = random
        self.tone = float(random.uniform(0.25, 0.85))

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def solid(
        self, kind: str, centre: tuple[float, ...], half: tuple[float, ...], tone: float = 0.0, pitch: float = 0.0
    ) -> Solid:
        """One part; ``tone`` is added to the toy's grey, ``pitch`` tilts it about y."""
        cos, sin = math.cos(pitch), math.sin(pitch)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=np.float32)
        grey = np.full(3, min(max(self.tone + tone, 0.06), 1.0), dtype=np.float32)
        return Solid(kind, np.array(centre, dtype=np.float32), np.array(half, dtype=np.float32), turn, grey)


def _animal(p: _Parts) -> list[Solid]:
    length, girth, leg = p.between(0.7, 1.05), p.between(0.28, 0.45), p.between(0.3, 0.6)
    neck, head = p.between(0.1, 0.6), p.between(0.18, 0.3)
    top = 2 * leg + girth
    parts = [
        p.solid(BALL, (0, 0, top), (length, girth, girth)),
        p.solid(BALL, (length + 0.1, 0, top + neck), (head * 1.4, head, head), 0.1),
        p.solid(BALL, (0.8 * length, 0, top + neck / 2), (head, head * 0.7, 0.2 + neck / 2)),
        p.solid(CYLINDER, (-length - 0.15, 0, top + 0.1), (0.05, 0.05, p.between(0.2, 0.4)), -0.2, -0.9),
        p.solid(BALL, (0.35 * length, girth * 0.8, top + 0.1), (0.18, 0.1, 0.16), -0.35),
    ]
    return parts + [
        p.solid(CYLINDER, (x * length * 0.65, y * girth * 0.6, leg), (0.09, 0.09, leg), -0.08)
        for x in (-1, 1)
        for y in (-1, 1)
    ]


def _human(p: _Parts) -> list[Solid]:
    leg, body, width = p.between(0.4, 0.6), p.between(0.35, 0.5), p.between(0.26, 0.38)
    top = 2 * leg + 2 * body
    reach = p.between(0.3, 0.5)
    return [
        p.solid(CYLINDER, (0, width * 0.5, leg), (0.13, 0.13, leg), -0.15),
        p.solid(CYLINDER, (0.12, -width * 0.5, leg), (0.13, 0.13, leg), -0.15),
        p.solid(CUBE, (0, 0, 2 * leg + body), (0.18, width, body)),
        p.solid(BALL, (0.04, 0, top + 0.22), (0.22, 0.2, 0.25), 0.15),
        p.solid(CYLINDER, (reach, -width - 0.1, top - 0.2), (0.09, 0.09, reach), 0.05, math.pi / 2),
        p.solid(CYLINDER, (0, width + 0.1, top - 0.4), (0.09, 0.09, 0.4), 0.05),
        p.solid(CUBE, (2 * reach, -width - 0.1, top - 0.1), (0.05, 0.05, p.between(0.3, 0.6)), -0.3),
        p.solid(CUBE, (-0.28, 0, top - 0.35), (0.12, width * 0.7, 0.3), -0.25),
    ]


def _plane(p: _Parts) -> list[Solid]:
    length, span, chord = p.between(0.9, 1.25), p.between(0.9, 1.3), p.between(0.18, 0.32)
    body, high = p.between(0.14, 0.22), p.between(0.35, 0.6)
    return [
        p.solid(BALL, (0, 0, high), (length, body, body)),
        p.solid(CUBE, (p.between(0.0, 0.3), 0, high + p.between(-0.08, 0.1)), (chord, span, 0.035), 0.1),
        p.solid(CUBE, (-length + 0.15, 0, high + 0.05), (chord * 0.6, span * 0.4, 0.03), 0.1),
        p.solid(CUBE, (-length + 0.12, 0, high + 0.3), (chord * 0.6, 0.03, 0.26), -0.2),
        p.solid(CYLINDER, (0.35, span * 0.5, high - 0.12), (0.1, 0.1, 0.25), -0.35, math.pi / 2),
        p.solid(BALL, (length * 0.55, 0, high + body * 0.8), (0.22, 0.12, 0.12), -0.35),
        p.solid(CYLINDER, (0.1, 0, high / 2), (0.05, 0.05, high / 2), -0.3),
    ]


def _truck(p: _Parts) -> list[Solid]:
    length, width, high = p.between(0.7, 1.0), p.between(0.38, 0.5), p.between(0.35, 0.6)
    wheel, cab = p.between(0.15, 0.22), p.between(0.28, 0.4)
    front = length + cab * 0.4
    return [
        p.solid(CUBE, (-cab, 0, wheel * 1.5 + high), (length, width, high)),
        p.solid(CUBE, (front, 0, wheel * 1.5 + 0.35), (cab, width * 0.95, 0.38), 0.2),
        p.solid(CUBE, (front + cab, 0, wheel * 1.5 + 0.45), (0.03, width * 0.8, 0.16), -0.5),
        p.solid(CYLINDER, (front - cab * 0.5, width * 0.8, wheel * 1.5 + 0.9), (0.06, 0.06, 0.3), -0.3),
        *_wheels(p, (-length, front), width, wheel),
    ]


def _car(p: _Parts) -> list[Solid]:
    length, width, high = p.between(0.95, 1.25), p.between(0.42, 0.55), p.between(0.16, 0.26)
    wheel, back = p.between(0.16, 0.22), p.between(0.15, 0.35)
    return [
        p.solid(CUBE, (0, 0, wheel + high), (length, width, high)),
        p.solid(BALL, (-back, 0, wheel + 2 * high), (length * 0.55, width * 0.85, p.between(0.3, 0.45)), 0.15),
        p.solid(CUBE, (length, 0, wheel + high), (0.04, width * 0.9, high * 0.5), -0.45),
        p.solid(CYLINDER, (-length * 0.8, width * 0.7, wheel + 2 * high + 0.2), (0.03, 0.03, 0.3), -0.3),
        *_wheels(p, (-length * 0.65, length * 0.65), width, wheel),
    ]


def _wheels(p: _Parts, along: tuple[float, float], width: float, radius: float) -> list[Solid]:
    return [p.solid(BALL, (x, y * width, radius), (radius, 0.09, radius), -0.6) for x in along for y in (-1, 1)]


_BUILDERS = (_animal, _human, _plane, _truck, _car)
