"""Averages: only of whole groups, the same for our results and for published rows."""

from __future__ import annotations

from headwise.comparison.averages import SIZES, averages
from headwise.results.records import FEWSHOT, GROUP_SIZES


def test_an_average_needs_every_task_of_its_group() -> None:
    groups = {name: [float(place) for place in range(size)] for name, size in GROUP_SIZES.items()}
    assert averages(groups) == {
        "mean_natural": 3.0,
        "mean_specialized": 1.5,
        "mean_structured": 3.5,
        "mean_groups": 8.0 / 3,
        "mean_19": (21.0 + 6.0 + 28.0) / 19,
    }
    groups["natural"].pop()
    assert averages(groups) == {"mean_specialized": 1.5, "mean_structured": 3.5}
    assert averages({FEWSHOT: [2.0] * SIZES[FEWSHOT], "": [1.0]}) == {"mean_fewshot": 2.0}
