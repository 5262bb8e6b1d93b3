from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from headwise.data import labels
from headwise.errors import ConfigError, DataError
from made_cases import each


def clevr(depths: Sequence[float]) -> dict[str, Any]:
    coords = [[0.0, 0.0, depth] for depth in depths]
    return {"objects": {"size": [0] * len(depths), "pixel_coords": np.array(coords, dtype=np.float32)}}


def kitti(*vehicles: tuple[int, float]) -> dict[str, Any]:
    return {"objects": {"type": [kind for kind, _ in vehicles], "location": [[0.0, 0.0, z] for _, z in vehicles]}}


def test_clevr_count() -> None:
    assert [labels.clevr_count(clevr([9.0] * n)) for n in range(3, 11)] == list(range(8))
    for count in (0, 2, 11):
        with pytest.raises(DataError, match=f"3 to 10 objects, this one has {count}"):
            labels.clevr_count(clevr([9.0] * count))


@each(
    "depth, expected",
    [(0.1, 0), (8.0, 0), (8.001, 1), (8.5, 1), (8.51, 2), (9.0, 2), (9.5, 3), (10.0, 4), (10.001, 5), (99.0, 5)],
)
def test_clevr_distance_belongs_to_the_bin_below_its_edge(depth: float, expected: int) -> None:
    assert labels.clevr_dist(clevr([12.0, depth, 99.5])) == expected


def test_clevr_distance_outside_of_the_bins() -> None:
    with pytest.raises(DataError, match=r"distance 0\.0 lies outside of the bins"):
        labels.clevr_dist(clevr([0.0, 5.0, 5.0]))
    with pytest.raises(DataError, match="this one has 0"):
        labels.clevr_dist(clevr([]))


@each(
    "vehicles, expected",
    [
        ([(0, 8.0)], 0),
        ([(0, 8.001)], 1),
        ([(1, 20.0), (0, 50.0)], 1),
        ([(2, 20.1)], 2),
        ([(3, 2.0), (0, 30.0)], 2),
        ([(3, 2.0), (7, 1.0)], 3),
        ([], 3),
        ([(0, -1.0)], 0),
    ],
)
def test_kitti_distance_of_the_nearest_vehicle(vehicles: list[tuple[int, float]], expected: int) -> None:
    assert labels.kitti_dist(kitti(*vehicles)) == expected


def test_dsprites_bins() -> None:
    location = [labels.dsprites_loc({"label_x_position": x}) for x in range(32)]
    orientation = [labels.dsprites_ori({"label_orientation": o}) for o in range(40)]
    assert np.bincount(location).tolist() == [2] * 16
    assert np.bincount(orientation).tolist() == [3, 2] * 8


def test_smallnorb_labels_are_as_stored() -> None:
    example = {"label_azimuth": np.int64(17), "label_elevation": np.int64(8)}
    assert (labels.smallnorb_azi(example), labels.smallnorb_ele(example)) == (17, 8)


def test_unknown_rule() -> None:
    with pytest.raises(ConfigError, match=r"unknown label_rule 'clevr_cont' \(did you mean 'clevr_count'\?\)"):
        labels.rule("clevr_cont")
