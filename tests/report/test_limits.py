"""Axes: a far value flattens nothing and is not lost."""

from __future__ import annotations

import pytest

from headwise.report import figures
from headwise.report.figures import Spot
from headwise.report.limits import reach, robust
from made_cases import each


@each(
    "values, ends",
    [
        ([85.0, 86.0, 87.0, 10.0], (85.0, 87.0)),
        ([85.0, 86.0, 10.0], (85.0, 86.0)),
        ([85.0, 10.0], (10.0, 85.0)),
        ([10.0, 40.0, 60.0, 90.0], (10.0, 90.0)),
        ([85.0, 85.1, 85.2, 86.2], (85.0, 86.2)),
        ([50.0], (50.0, 50.0)),
        ([50.0, 50.0, 50.0, 50.0, 99.0], (50.0, 50.0)),
    ],
)
def test_far_values_are_left_out(values: list[float], ends: tuple[float, float]) -> None:
    assert robust(values) == ends


@each(
    "rows, expected",
    [
        ([[1.0, -2.0], [0.5, 2.5]], 2.5),
        ([[1.0, -2.0], [40.0, 41.0]], 6.0),
        ([[0.1, 0.2, 0.3, 30.0], [0.2, -0.4]], 0.4),
        ([[40.0, -30.0]], 40.0),
        ([[0.0], [0.0, 7.0]], 7.0),
        ([[0.0]], 1.0),
        ([[], []], 1.0),
    ],
)
def test_rows_share_an_axis_that_shows_all_of_them(rows: list[list[float]], expected: float) -> None:
    assert reach(rows) == pytest.approx(expected)


def test_a_far_point_is_an_arrow_with_its_value() -> None:
    spots = [Spot(10.0**place, 80.0 + place, label=f"m{place}") for place in range(2, 6)]
    drawn = str(figures.scatter([*spots, Spot(1e3, 10.0, 1.0, "low", "low: 10.00 %")], "t", "x", "y"))
    assert ">low: 10.0</text>" in drawn and "m0 6l5 -6" in drawn and "low: 10.00 %" in drawn
    assert ">82</text>" in drawn and ">40</text>" not in drawn
    assert "m0 6l5 -6" not in str(figures.scatter(spots, "t", "x", "y"))


def test_a_level_is_never_left_out() -> None:
    line = [Spot(float(place), 80.0 + place / 10) for place in range(6)]
    drawn = str(figures.curves({"a": line}, 20.0, "t", "x", "y"))
    assert 'class="level"' in drawn and ">20</text>" in drawn


def test_a_far_pair_is_an_arrow_at_the_end_of_its_strip() -> None:
    drawn = str(figures.strip([0.5, -0.2, 30.0], 10.1, (-0.3, 29.0), 1.0, "t"))
    assert drawn.count('class="pair"') == 2 and drawn.count('class="far"') == 1
    assert "+30.00, +10.10" in drawn and 'class="mean"' not in drawn
    assert "200.0H" not in drawn.replace("H194", "")
    inside = str(figures.strip([0.5, -0.2], 0.1, (None, None), 1.0, "t"))
    assert "far" not in inside and 'class="mean"' in inside
