"""Statistics of paired differences, and the comparison of any two rows."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pandas as pd
import pytest

from headwise.comparison.contrast import bootstrap, contrast
from headwise.comparison.paired import CONTRAST, LINE, against, contrasts
from headwise.comparison.tables import compare
from headwise.errors import ConfigError
from made_cases import each
from made_results import PROTOCOL, run


def by_hand(tasks: list[list[float]], resamples: int, seed: int) -> tuple[float, float]:
    """The same bootstrap, written as it is said."""
    rng = random.Random(seed)
    means = []
    for _ in range(resamples):
        drawn = rng.choices(tasks, k=len(tasks))
        means.append(statistics.fmean(statistics.fmean(rng.choices(values, k=len(values))) for values in drawn))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def test_the_bootstrap_is_the_one_that_is_described() -> None:
    rng = random.Random(1)
    tasks = [[rng.gauss(task / 4, 1.0) for _ in range(rng.choice((1, 2, 5)))] for task in range(19)]
    found, plain = bootstrap(tasks), by_hand(tasks, 10_000, 2)
    assert found == pytest.approx(plain, abs=0.05)
    assert found[1] - found[0] == pytest.approx(plain[1] - plain[0], rel=0.05)


def test_its_width_is_that_of_many_independent_tasks() -> None:
    values = [[value] for value in np.random.default_rng(3).normal(0.5, 2.0, 400).tolist()]
    low, high = bootstrap(values)
    flat = [value for (value,) in values]
    assert (low + high) / 2 == pytest.approx(statistics.fmean(flat), abs=0.05)
    assert high - low == pytest.approx(2 * 1.96 * statistics.stdev(flat) / 20, rel=0.06)


def test_the_draws_are_fixed_and_the_order_does_not_matter() -> None:
    shuffled = contrast({"b": [0.5, 2.0], "a": [1.0, -1.0, 3.0]})
    assert shuffled == contrast({"a": [3.0, 1.0, -1.0], "b": [2.0, 0.5]})


@each("tasks, ends", [([[1.0, 1.0, 1.0]], (1, 1)), ([[1.0], [3.0]], (1, 3)), ([[2.0]], None)])
def test_ends_that_are_known(tasks: list[list[float]], ends: tuple[float, float] | None) -> None:
    assert bootstrap(tasks) == (pytest.approx(ends) if ends else None)


def test_tasks_weigh_the_same_and_pairs_are_counted() -> None:
    found = contrast({"a": [1.0, 2.0, 3.0], "b": [0.0], "c": [-1.0, -0.5]})
    assert found.mean == pytest.approx((2.0 + 0.0 - 0.75) / 3)
    assert (found.wins, found.ties, found.losses) == (3, 1, 2)
    assert (found.tasks, found.pairs) == (3, 6)
    assert found.low < found.mean < found.high


@each("number", [1, 5, 6])
def test_few_pairs_have_no_interval(number: int) -> None:
    found = contrast({"a": [float(value) for value in range(number)]})
    assert (found.low is None, found.high is None) == (number < 6, number < 6)


def lines(*given: tuple[str, str, str, int, float]) -> pd.DataFrame:
    return pd.DataFrame([(row, phase, task, "natural", seed, v) for row, phase, task, seed, v in given], columns=LINE)


def test_one_line_for_each_row_and_kind() -> None:
    found = contrasts(
        lines(("hs", "P2 - P1", "a", 0, 1.0), ("hs", "P2 - P1", "b", 0, 2.0), ("x", "P2 - P1", "a", 0, 0))
    )
    assert list(found.columns) == CONTRAST
    assert found[["row", "mean", "pairs"]].values.tolist() == [["hs", 1.5, 2], ["x", 0.0, 1]]
    assert pd.isna(found.iloc[1]["low"])
    assert contrasts(lines()).empty


ACCURACIES = lines(
    ("hs", "P1", "a", 0, 70.0),
    ("hs", "P2", "a", 0, 75.0),
    ("hs", "P2", "b", 0, 85.0),
    ("hs", "P2", "b", 1, 86.0),
    ("lora (e)", "P1", "a", 0, 74.0),
    ("lora (e)", "P1", "b", 1, 86.5),
    ("lora (e)", "P1", "c", 1, 50.0),
)


def test_two_rows_meet_where_both_have_task_and_seed() -> None:
    found = against(ACCURACIES, "hs", "lora (e)")
    assert found[["row", "phase", "column", "repeat", "value"]].values.tolist() == [
        ["hs", "P2 - lora (e) P1", "a", 0, 1.0],
        ["hs", "P2 - lora (e) P1", "b", 1, -0.5],
    ]
    assert against(ACCURACIES, "hs", "lora")["value"].tolist() == [1.0, -0.5]  # the only variant there is
    assert against(ACCURACIES, "hs", "hs:P1")["value"].tolist() == [5.0]


@each(
    "first, second, message",
    [
        ("hz", "lora", r"'hz' has no finished run here \(did you mean 'hs'\?\); allowed: hs, lora \(e\)"),
        ("hs", "lora:P2", r"'lora' has no tested phase 'P2'|'lora \(e\)' has no tested phase 'P2'"),
        ("hs", "hs:P2", "the same runs"),
    ],
)
def test_rows_that_cannot_be_compared(first: str, second: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        against(ACCURACIES, first, second)


def test_a_name_of_several_variants_is_refused() -> None:
    more = pd.concat([ACCURACIES, lines(("lora (f)", "P1", "a", 0, 1.0))])
    with pytest.raises(ConfigError, match=r"'lora' has several variants here.*lora \(e\), lora \(f\)"):
        against(more, "hs", "lora")


def test_a_table_of_two_methods() -> None:
    results = [run("hs", seed=seed, accuracy=(70.0, 75.0 + seed)) for seed in (0, 1)]
    results += [run("lora", seed=seed, accuracy=(74.0,)) for seed in (0, 1, 2)] + [run("other")]
    (table,) = compare(results, "hs", "lora", "T")
    assert table.title == "T"
    assert set(table.cells["row"]) == set(table.costs["row"]) == {"hs", "lora"}
    (found,) = table.contrasts.to_dict("records")
    assert (found["mean"], found["wins"], found["pairs"]) == (1.5, 2, 2)
    assert "5 results, seeds 0, 1, 2" in table.notes[1]
    assert table.paired["phase"].tolist() == ["P2 - lora P1"]


def test_two_copies_of_the_images_are_compared_as_rows_of_one_method() -> None:
    """What JPEG costs: `experiment=lossy` trains one method on images as they are and on lossy copies."""
    exact = [run(seed=seed, accuracy=(80.0 + 2 * seed,), data="png") for seed in (0, 1, 2)]
    copies = [
        run(seed=seed, accuracy=(77.0 + 4 * seed,), data="jpeg", labels=["lossy"], variant="lossytrue")
        for seed in (0, 1)
    ]
    (table,) = compare([*exact, *copies], "lora (lossytrue)", "lora", pool=True)
    (found,) = table.contrasts.to_dict("records")
    assert (found["mean"], found["pairs"], found["wins"]) == (-2.0, 2, 0)


def test_methods_of_different_settings_do_not_meet_unasked() -> None:
    results = [run("a"), run("b", protocol={**PROTOCOL, "lr": 1})]
    with pytest.raises(ConfigError, match=r"share no task and seed in one setting.*protocol.lr: 0.001 vs 1.*--pool"):
        compare(results, "a", "b")
    (table,) = compare(results, "a", "b", pool=True)
    assert any("(POOLED)" in note for note in table.notes)
    with pytest.raises(ConfigError, match="Run both on one task with one seed"):
        compare([run("a"), run("b", seed=1)], "a", "b")
    with pytest.raises(ConfigError, match=r"'c' has no finished run here"):
        compare(results, "a", "c")
