"""Tables of the report: what stands first."""

from __future__ import annotations

from headwise.comparison.tables import tables
from headwise.report import grids
from headwise.report.page import report
from made_cases import each
from made_results import run, suite


def test_averages_stand_before_the_tasks() -> None:
    (table,) = tables(suite())
    grid = grids.accuracies(table, "x", {})
    assert list(grid.head[:4]) == ["method", "parameters", "mean_19", "mean_groups"]
    assert grid.head[4:7] == ["mean_natural", "mean_specialized", "mean_structured"]
    assert grid.head[7] == "nat0"
    assert len(grid.head) == 2 + 24


def test_phases_stand_under_their_task() -> None:
    (table,) = tables([*suite(), run("hs", "nat0", accuracy=(60.0, 61.0))])
    grid = grids.accuracies(table, "x", {})
    assert grid.over[2:4] == ["mean_19", "mean_groups"]
    assert grid.over[7:9] == ["nat0", "nat0"]
    assert grid.head[7:9] == ["P1", "P2"]


def test_where_it_pays_has_marks_and_minus_signs() -> None:
    results = [
        run("hs", f"t{place}", seed, group="natural", accuracy=(70.0, 71.0 - 3 * place + seed / 10))
        for place in (0, 1)
        for seed in range(3)
    ]
    (table,) = tables(results)
    grid = grids.pays(table, "x")
    assert grid.head == ["method", "difference", "natural", "chance to be better", "t0", "t1"]
    (line,) = grid.body
    assert [str(cell) for cell in line[:2]] == ["hs", "P2 - P1"]
    assert line[5].text == "\u22121.90" and line[5].mark == "loss" and line[4].mark == "gain"
    assert line[5].small.startswith("(p ") and "Holm" in line[5].small
    assert line[3].text == "0.50" and line[3].mark == ""
    assert grid.csv.startswith("row,phase,kind,column,mean,low,high,p,holm,tasks,pairs\n")
    assert "Where it pays" in report(results)


def test_differences_are_summed_up_before_each_task() -> None:
    pairs = [run("hs", task, seed, accuracy=(60.0, 61.0 + seed)) for task in ("a", "b", "c") for seed in (0, 1)]
    (table,) = tables(pairs)
    grid = grids.differences(table, "x")
    assert list(grid.head) == ["method", "difference", "all tasks", "won, tied, lost", "a", "b", "c"]
    (line,) = [line for line in grid.body if line[1].text == "P2 - P1"]
    assert (line[2].text, line[2].mark, line[3].text) == ("+1.50", "gain", "6, 0, 0")
    assert line[2].small == "+1.17 to +1.83"
    (table,) = tables(pairs[:2])
    assert grids.differences(table, "x").body[0][2].small == "", "too few pairs for an interval"


@each(
    "num_bytes, text",
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (2**20 * 2345.4, "2,345 MiB"), (55_704, "54.4 KiB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert grids.size(num_bytes) == text
