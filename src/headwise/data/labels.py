"""Label rules: classes that are computed from an example's features rather than stored. Numpy only.

A rule takes the features of one example, named as upstream names them, and returns its class. A task's YAML names the
rule (``label_rule``), nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headwise.errors import DataError, check_choice

Example = Mapping[str, Any]

CLEVR_DISTANCE_EDGES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCE_EDGES = (-100.0, 8.0, 20.0, 999.0)
# upstream's distance where there is none, beyond the last edge, which makes it a class of its own
KITTI_NO_VEHICLE = 1000.0
KITTI_VEHICLES = 3
"""Types below this are vehicles: 0 car, 1 van, 2 truck."""


def label_of(example: Example, label_key: str | None, label_rule: str | None) -> int:
    """Class of one example: what its rule derives, else the stored label."""
    return int(example[str(label_key)]) if label_rule is None else rule(label_rule)(example)


def clevr_count(example: Example) -> int:
    """Number of objects, 3 .. 10, as class 0 .. 7."""
    count = len(example["objects"]["size"])
    if not 3 <= count <= 10:
        raise DataError(f"CLEVR scenes have 3 to 10 objects, this one has {count}")
    return count - 3


def clevr_dist(example: Example) -> int:
    """Distance of the nearest object along the camera's axis, in 6 bins: up to 8, 8.5, 9, 9.5, 10, beyond."""
    depths = np.asarray(example["objects"]["pixel_coords"], dtype=np.float32).reshape(-1, 3)[:, 2]
    if len(depths) == 0:
        raise DataError("CLEVR scenes have 3 to 10 objects, this one has 0")
    return last_edge_below(float(depths.min()), CLEVR_DISTANCE_EDGES)


def kitti_dist(example: Example) -> int:
    """Distance of the nearest car, van or truck, in 4 bins: up to 8 m, up to 20 m, farther, no vehicle at all."""
    kinds = np.asarray(example["objects"]["type"], dtype=np.int64).reshape(-1)
    depths = np.asarray(example["objects"]["location"], dtype=np.float32).reshape(-1, 3)[:, 2]
    vehicles = depths[kinds < KITTI_VEHICLES]
    return last_edge_below(float(vehicles.min(initial=KITTI_NO_VEHICLE)), KITTI_DISTANCE_EDGES)


def dsprites_loc(example: Example) -> int:
    """Column of the sprite's centre, 32 positions in 16 bins of 2."""
    return int(np.floor(np.float32(example["label_x_position"]) / np.float32(2.0)))


def dsprites_ori(example: Example) -> int:
    """Orientation, 40 steps in 16 bins that are 3, 2, 3, 2, ... steps wide."""
    # in float32 as upstream divides
    return int(np.floor(np.float32(example["label_orientation"]) / np.float32(2.5)))


def smallnorb_azi(example: Example) -> int:
    """Azimuth, 18 steps of 20 degrees; upstream has already halved the raw 0, 2, ... 34."""
    return int(example["label_azimuth"])


def smallnorb_ele(example: Example) -> int:
    """Elevation, 9 steps of 5 degrees from 30 to 70."""
    return int(example["label_elevation"])


def last_edge_below(value: float, edges: Sequence[float]) -> int:
    """Largest i with ``edges[i] < value``: on an edge it is of the bin before; DataError if not above the first."""
    index = int(np.searchsorted(np.asarray(edges), value, side="left")) - 1
    if index < 0:
        raise DataError(f"distance {value} lies outside of the bins, which begin above {edges[0]}")
    return index


RULES: dict[str, Callable[[Example], int]] = {
    rule.__name__: rule
    for rule in (clevr_count, clevr_dist, kitti_dist, dsprites_loc, dsprites_ori, smallnorb_azi, smallnorb_ele)
}


def rule(name: str) -> Callable[[Example], int]:
    """The label rule of that name; ConfigError if there is none, listing those there are."""
    check_choice("label_rule", name, RULES)
    return RULES[name]
