"""Tables of where second phases lie, and how gains go with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headwise.comparison import mechanism
from headwise.comparison.tables import tables
from headwise.report.formats import render
from headwise.results.records import Result, ResultError
from made_cases import each
from made_results import run


def lying(gain: float, seed: int, dataset: str = "svhn", **measures: float) -> Result:
    made: Any = run("hs_lora", dataset, seed=seed, accuracy=(60.0, 60.0 + gain))
    first, second = made.phases
    extra = {**second.extra, "mechanism": {"shared": 0.5, "own": 0.25, **measures}}
    return replace(made, phases=[first, replace(second, extra=extra)])


def test_a_gain_that_goes_with_a_measure_is_said_to_and_tasks_are_ranked_apart() -> None:
    # the tasks' gains and measures are far apart; within each the gain falls with the share
    made = [lying(seed, seed, rows=0.5 - 0.1 * seed) for seed in range(4)]
    made += [lying(20 + seed, seed, "dtd", rows=0.95 - 0.1 * seed) for seed in range(4)]
    (table,) = tables(made)
    (said,) = mechanism.correlations(table.mechanism)
    assert "in the first phase's rows -1.00 (n = 8," in said
    assert "in another head's rows" not in said, "it does not vary"


def test_too_few_runs_are_not_correlated() -> None:
    (table,) = tables([lying(seed, seed, rows=0.1 * seed) for seed in range(5)])
    assert mechanism.correlations(table.mechanism) == []


def test_means_stand_in_every_form() -> None:
    (table,) = tables([lying(1.0, 0, rows=0.25), lying(2.0, 1, rows=0.75)])
    (line,) = mechanism.lies(table.mechanism).to_dict("records")
    assert (line["gain"], line["shared"], line["rows"], line["n"]) == (1.5, 0.5, 0.5, 2)
    assert "| hs_lora | svhn | +1.50 | 0.500 | 0.250 | 0.500 |  | 2 |" in render([table], "md")
    assert "mechanism, rows,hs_lora,,svhn,,0.5,,2" in render([table], "csv").replace('"', "")
    (plain,) = json.loads(render([table], "json"))["tables"]
    assert plain["mechanism"][0] == {
        "row": "hs_lora",
        "column": "svhn",
        "gain": 1.0,
        "shared": 0.5,
        "own": 0.25,
        "rows": 0.25,
        "columns": None,
    }


def test_runs_of_one_phase_and_older_records_have_no_such_table() -> None:
    (table,) = tables([run("lora", seed=0), run("hs_lora", seed=0, accuracy=(60.0, 61.0))])
    assert table.mechanism.empty
    assert "where second phases lie" not in render([table], "md")
    assert "mechanism" not in json.loads(render([table], "json"))["tables"][0]


@each("value", ["much", -0.5, 2])
def test_measures_that_are_none_are_refused(value: Any) -> None:
    raw = lying(1.0, 0).to_json()
    raw["phases"][1]["extra"]["mechanism"]["rows"] = value
    with pytest.raises(ResultError, match="mechanism"):
        Result.from_json(raw, Path("x"))


def test_p_values_are_those_of_a_correlation() -> None:
    from scipy import stats

    for other in ([2.0, 1.0, 4.0, 3.0, 6.0, 5.0, 8.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]):
        found = stats.pearsonr([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], other)
        assert mechanism._p_value(found.statistic, 5) == pytest.approx(found.pvalue, rel=1e-6)


SINGLES = (1,) * 8 + (5, 5)


@pytest.mark.parametrize(
    "sizes, repeats, least, most",
    [(SINGLES, 80, 1, 10)]
    + [pytest.param(sizes, 400, 8, 34, marks=pytest.mark.slow) for sizes in (SINGLES, (3,) * 12, (6, 6))],
)
def test_of_unrelated_numbers_one_p_in_twenty_is_small(
    sizes: tuple[int, ...], repeats: int, least: int, most: int
) -> None:
    draws, small = np.random.default_rng(0), 0
    for _ in range(repeats):
        lines = [
            {"row": "x", "column": str(task), "gain": draws.normal(task), "rows": draws.uniform()}
            for task, number in enumerate(sizes)
            for _ in range(number)
        ]
        (said,) = mechanism.correlations(pd.DataFrame(lines, columns=mechanism.RUNS))
        small += float(said.partition("p ")[2].partition(")")[0]) < 0.05
    assert least <= small <= most
