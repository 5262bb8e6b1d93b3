"""Methods ranked over tasks: ours against autorank and against what is known by hand."""

from __future__ import annotations

import builtins
import contextlib
import io
import math
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from headwise.comparison.comparable import places
from headwise.comparison.ranking import Ranking, rank, said, scores, unequal_seeds
from headwise.comparison.tables import frame
from headwise.errors import ConfigError
from headwise.results.records import Result
from made_cases import each
from made_results import run


def group(gains: list[float], tasks: int = 9, seed: int = 0) -> pd.DataFrame:
    """Accuracies of as many methods as gains, over tasks of different difficulty."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(40, 90, (tasks, 1))
    return pd.DataFrame(
        ground + gains + rng.normal(size=(tasks, len(gains))), columns=list("abcdefgh"[: len(gains)])
    ).round(2)


def theirs(table: pd.DataFrame) -> tuple[Any, list[tuple[str, ...]]]:
    """What autorank says of the same."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from autorank import autorank
        from autorank._util import get_sorted_rank_groups

        made = autorank(table, force_mode="nonparametric")
        made = made._replace(rankdf=made.rankdf.sort_values("meanrank"))
        _, names, groups = get_sorted_rank_groups(made, False)
    return made, [tuple(names[first : last + 1]) for first, last in groups]


@each("gains", [[0, 1, 2, 3], [0, 0.1, 0.2], [0, 3, 3, 6, 6.5, 9]])
def test_ours_and_autorank_agree(gains: list[float]) -> None:
    table = group(gains)
    ours, (made, groups) = rank(table), theirs(table)
    assert ours.ranks == pytest.approx(made.rankdf["meanrank"].to_dict())
    assert ours.p == pytest.approx(stats.friedmanchisquare(*table.to_numpy().T).pvalue)
    # Nemenyi's, by the formula of Demsar's paper and scipy's exact quantile of the studentised range
    k, n = len(gains), len(table)
    quantile = stats.studentized_range.ppf(0.95, k, math.inf) / math.sqrt(2)
    assert ours.distance == pytest.approx(quantile * math.sqrt(k * (k + 1) / (6 * n)), rel=2e-3)
    if ours.p < 0.05:
        assert list(map(set, ours.alike)) == list(map(set, groups)), "in the order of ranks, ties apart"


def test_the_critical_difference_is_that_of_demsars_example() -> None:
    """JMLR 7, 2006, section 3.2.4: four classifiers on 14 data sets, 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25."""
    assert rank(group([0, 1, 2, 3], tasks=14)).distance == pytest.approx(1.25, abs=0.005)


def test_planted_orders_are_found() -> None:
    made = rank(group([0, 6, 3, 9]))
    assert made.ranks == {"d": 1.0, "b": 2.0, "c": 3.0, "a": 4.0}
    assert made.p < 0.001 and made.alike == [("d", "b"), ("b", "c"), ("c", "a")]
    assert "Not told apart: d, b; b, c; c, a." in said(made)
    equal = rank(group([0, 0, 0, 0], seed=2))
    assert equal.p > 0.05 and equal.alike == [tuple(equal.ranks)]
    assert "the methods are not told apart" in said(equal)[1]
    assert Ranking({"a": 1.0, "b": 2.0, "c": 3.0}, 30, 0.001, 0.5).alike == []


def test_ties_share_their_rank_and_go_by_name() -> None:
    table = pd.DataFrame({"b": [1.0] * 6, "a": [1.0] * 6, "c": [2.0 - 1e-12] * 5 + [2.0]})
    made = rank(table)
    assert list(made.ranks.items()) == [("c", 1.0), ("a", 2.5), ("b", 2.5)]
    alike = rank(pd.DataFrame({"a": [0.1 + 0.2] * 6, "b": [0.3] * 6, "c": [0.3] * 6}))
    assert set(alike.ranks.values()) == {2.0}
    assert (alike.p, alike.distance) == (None, None)
    assert said(alike)[1] == "Nothing is tested: all methods tie on every task."


def test_few_tasks_are_ranked_and_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autorank", None)
    made = rank(group([0, 5, 9], tasks=4))
    assert list(made.ranks) == ["c", "b", "a"] and made.p is None
    assert said(made)[1] == "Nothing is tested: fewer than 5 tasks."


def test_a_missing_autorank_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **options: Any) -> Any:
        if name == "autorank":
            raise ModuleNotFoundError("No module named 'autorank'")
        return real(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs the package autorank .*pip install -e '\.\[ranking\]'") as caught:
        rank(group([0, 1, 2]))
    assert "\n" not in str(caught.value)


def table_of(results: list[Result]) -> pd.DataFrame:
    return scores(frame(results, places(results)[0]))


def test_scores_are_of_the_last_phase_and_the_mean_of_the_seeds() -> None:
    results = [run("hs", seed=seed, accuracy=(70.0, 80.0 + seed)) for seed in (0, 1)]
    results += [run(name, seed=seed, accuracy=(60.0,)) for name in ("lora", "ssf") for seed in (0, 1, 2)]
    table = table_of(results)
    assert table.loc["svhn"].to_dict() == {"hs": 80.5, "lora": 60.0, "ssf": 60.0}


def test_unequal_seeds_are_said() -> None:
    seeds = {"hs": {"svhn": 2, "dtd": 2}, "lora": {"svhn": 3, "dtd": 3}, "ssf": {"svhn": 3, "dtd": 1}}
    results = [
        run(name, task, seed=seed) for name, of in seeds.items() for task, num in of.items() for seed in range(num)
    ]
    lines = frame(results, places(results)[0])
    assert unequal_seeds(lines) == [
        "UNEQUAL SEEDS: a method's accuracy on a task is its mean over hs 2, lora 3, ssf 1 to 3."
    ]
    alike = [result for result in results if result.key.seed == 0]
    assert unequal_seeds(frame(alike, places(alike)[0])) == []


def test_who_lacks_which_task_is_said() -> None:
    full = [run(name, task) for name in ("a", "b", "c") for task in ("svhn", "dtd", "pets")]
    some = [
        one for one in full if (one.key.method, one.key.dataset) not in (("a", "dtd"), ("c", "svhn"), ("c", "pets"))
    ]
    with pytest.raises(ConfigError, match=r"all methods on the same tasks: a lacks dtd; c lacks pets; svhn$"):
        table_of(some)
    with pytest.raises(ConfigError, match=r"needs 3 methods or more, got a, b; make_tables\.py --compare"):
        table_of([one for one in full if one.key.method != "c"])
