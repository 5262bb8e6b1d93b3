"""The leaderboard: what is averaged, what stands last, and what its filters know."""

from __future__ import annotations

import dataclasses
import html
import json
import re

from headwise.comparison.comparable import ordered, places
from headwise.report.leaderboard import GROUPS, MEAN, Block, block, board
from headwise.report.page import report
from headwise.results.records import Result
from made_cases import each
from made_results import TASKS, few, run, suite


def made(results: list[Result]) -> Block:
    usable = ordered(results)
    where, _ = places(usable)
    return block("runs", "runs-1", usable, where, {}, [task for task, _ in TASKS])


def lines(one: Block) -> dict[str, dict[str, str]]:
    return {line.cells["method"].text: {name: str(cell) for name, cell in line.cells.items()} for line in one.standings}


def test_means_are_over_tasks_of_means_over_seeds() -> None:
    row = lines(made([*suite("lora"), *suite("vpt", seeds=(0,))]))["lora"]
    # accuracies are 50 + the task's place + the seed
    assert row["natural"] == "53.50 \u00b1 0.71"
    assert row["structured"] == "65.00 \u00b1 0.71"
    assert row[MEAN] == "59.50 \u00b1 0.71"
    assert row[GROUPS] == f"{(53.5 + 59.0 + 65.0) / 3:.2f}"
    assert (row["tasks"], row["seeds"], row["parameters"]) == ("19", "2", "100")


def test_the_last_phase_counts() -> None:
    assert lines(made([run("hs_lora", accuracy=(70.0, 80.0))]))["hs_lora"][MEAN] == "80.00"


def test_who_lacks_tasks_stands_last_and_says_so() -> None:
    lucky = [run("lucky", task, group=group, accuracy=(99.0,)) for task, group in TASKS[:2]]
    one = made([*suite("lora"), *lucky])
    assert [line.cells["method"].text for line in one.standings] == ["lora", "lucky"]
    row = lines(one)["lucky"]
    assert (row[MEAN], row["natural"], row["structured"], row[GROUPS]) == ("99.00 2 of 19", "99.00 2 of 7", "", "")
    assert (row["tasks"], one.standings[1].cells[MEAN].mark) == ("2 of 19", "part")


def test_the_best_stands_first_and_uneven_seeds_have_no_deviation() -> None:
    one = made([run("a", accuracy=(80.0,)), run("b", accuracy=(90.0,)), run("b", "dtd"), run("a", "dtd", 1)])
    assert [line.cells["method"].text for line in one.standings] == ["b", "a"]
    assert lines(one)["a"][MEAN] == "85.00"


def test_few_shot_sets_are_other_tasks() -> None:
    one = board([made([few(draw=draw, accuracy=40.0 + draw) for draw in range(3)])])
    assert "natural" not in one.grid.head and "other tasks" not in one.grid.head
    assert one.blocks[0].standings[0].cells[MEAN].text == "41.00"


def of_several_labels(method: str, value: float) -> Result:
    made = run(method, "weather", group="own", accuracy=(value,))
    return dataclasses.replace(made, phases=[dataclasses.replace(made.phases[0], extra={"average_precision": {}})])


def test_map_is_averaged_apart_from_accuracies() -> None:
    one = made([run("a"), of_several_labels("a", 10.0), run("b", accuracy=(80.0,)), of_several_labels("b", 99.0)])
    assert [line.cells["method"].text for line in one.standings] == ["a", "b"]
    assert (lines(one)["a"][MEAN], lines(one)["a"]["mAP"], lines(one)["a"]["tasks"]) == ("90.00", "10.00", "2")
    assert "mAP" in board([one]).grid.head and "natural 1, mAP 1" in one.lead


def test_a_block_of_nothing_but_map_says_so() -> None:
    results = [of_several_labels("a", 10.0)]
    one = made(results)
    assert (lines(one)["a"][MEAN], one.lead) == ("10.00", "1 task (mAP 1): weather (mAP)")
    assert "mAP is averaged apart" in report(results) and "mAP is averaged apart" not in report([run()])


def test_filters_know_tasks_and_labels_of_each_line() -> None:
    evil = "<b>'\"&"
    results = [run("lora", labels=["synthetic", evil]), run("vpt", "dtd", labels=["synthetic"])]
    one = board([made(results)])
    assert (sorted(one.tasks), one.labels) == (["dtd", "svhn"], [evil, "synthetic"])
    assert lines(one.blocks[0])["lora"]["labels"] == evil and one.blocks[0].lead.endswith("; synthetic")
    page = report(results)
    rows = [json.loads(html.unescape(text)) for text in re.findall(r'data-labels="([^"]*)"', page)]
    assert sorted(rows) == [["synthetic"], ["synthetic", evil]]
    assert [json.loads(html.unescape(text)) for text in re.findall(r'data-tasks="([^"]*)"', page)]
    assert f"<option>{html.escape(evil, quote=False).replace(chr(39), '&#39;').replace(chr(34), '&#34;')}" in page


def test_settings_are_blocks_and_the_data_have_all() -> None:
    other = run("linear", weights={"name": "another", "sha256": "cd"}, accuracy=(10.0,))
    page = report([run("lora"), other])
    assert page.count('<tr class="block">') == 2
    assert page.index('id="leaderboard"') < page.index('id="summary"')
    assert re.search(r'download="leaderboard\.csv" href="data:text/csv[^"]*linear%2C10\.0', page)


@each("label", ["smoke", "synthetic"])
def test_smoke_is_said_beside_the_name(label: str) -> None:
    (line,) = re.findall(r"<tr data-tasks.*", report([dataclasses.replace(run(), labels=[label])]))
    assert ('<strong class="badge">SMOKE</strong>' in line) == (label == "smoke")
