"""Methods ranked over tasks: mean ranks, and which of them a test does not tell apart. Never imports torch."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from headwise.errors import ConfigError
from headwise.results.fingerprint import few

FEWEST_TASKS, FEWEST_METHODS = 5, 3
"""Below so many tasks nothing is tested; of two methods the paired differences say more."""
ALPHA = 0.05
_DIGITS = 9
"""Of accuracies: what differs behind them is the rounding of means, and a tie."""


@dataclass(frozen=True)
class Ranking:
    """Methods in the order of their ranks.

    Attributes:
        ranks: of each method, best first, the mean over the tasks of its rank; 1 is best, ties share theirs.
        p: of Friedman's test: would equal methods have ranks so different? None of fewer than `FEWEST_TASKS` tasks,
            and where all tie on each.
        distance: Nemenyi's critical difference at 5 %: mean ranks farther apart differ; None where `p` is.
    """

    ranks: Mapping[str, float]
    num_tasks: int
    p: float | None = None
    distance: float | None = None

    @property
    def tasks(self) -> str:
        """Their number in words."""
        return f"{self.num_tasks} task{'s' * (self.num_tasks != 1)}"

    @property
    def alike(self) -> list[tuple[str, ...]]:
        """Neighbours that are not told apart, as many as go together, best first; all where `p` is not below 5 %."""
        names = list(self.ranks)
        if self.p is None or self.distance is None or self.p >= ALPHA:
            return [tuple(names)]
        groups: list[tuple[str, ...]] = []
        last = 0
        for place, name in enumerate(names):
            end = sum(self.ranks[other] - self.ranks[name] <= self.distance for other in names)
            # a group that ends where the one before did lies within it, and one method is no group
            if end > max(last, place + 1):
                groups.append(tuple(names[place:end]))
                last = end
        return groups


def scores(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each method on each task, mean over its seeds, after its last tested phase.

    Returns:
        A line per task, a column per row of the tables.
    Raises:
        ConfigError: for fewer than `FEWEST_METHODS` methods, and where one lacks a task of another; names them.
    """
    table = _last(lines).pivot_table(index="column", columns="row", values="value", aggfunc="mean")
    if len(table.columns) < FEWEST_METHODS:
        raise ConfigError(
            f"a ranking needs {FEWEST_METHODS} methods or more, got {', '.join(table.columns) or 'none'}; "
            "make_tables.py --compare A B compares two"
        )
    lacking = {name: table.index[table[name].isna()] for name in table.columns}
    if parts := [f"{name} lacks {few(list(tasks))}" for name, tasks in lacking.items() if len(tasks)]:
        raise ConfigError(f"a ranking needs all methods on the same tasks: {'; '.join(parts)}")
    return table


def _last(lines: pd.DataFrame) -> pd.DataFrame:
    """Of each row its last tested phase."""
    return lines[lines["phase"] == lines.groupby("row")["phase"].transform("max")]


def unequal_seeds(lines: pd.DataFrame) -> list[str]:
    """Say how many seeds the means of each method are of, where those are not as many for all, on every task."""
    counts = _last(lines).groupby(["row", "column"])["repeat"].nunique()
    if counts.nunique() < 2:
        return []
    ends = {row: dict.fromkeys((some.min(), some.max())) for row, some in counts.groupby("row")}
    each = ", ".join(f"{row} {' to '.join(map(str, numbers))}" for row, numbers in ends.items())
    return [f"UNEQUAL SEEDS: a method's accuracy on a task is its mean over {each}."]


def rank(table: pd.DataFrame) -> Ranking:
    """Rank methods by their accuracy on each task, and test the mean ranks (Demsar, JMLR 2006) by autorank.

    Raises:
        ConfigError: if there are enough tasks for a test and autorank is not installed.
    """
    table = table.round(_DIGITS)
    # a tie of mean ranks goes by name, so that the order does not depend on that of the records
    ranks = table.rank(axis=1, ascending=False).mean().sort_index().sort_values(kind="stable")
    plain = {str(name): float(value) for name, value in ranks.items()}
    if len(table) < FEWEST_TASKS:
        return Ranking(plain, len(table))
    p, distance = _tested(table.reset_index(drop=True))
    return Ranking(plain, len(table), *((None, None) if math.isnan(p) else (p, distance)))


def _tested(table: pd.DataFrame) -> tuple[float, float]:
    """Friedman's p and Nemenyi's critical difference."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # of its tests of normality, which these tests do not need, and of packages that it imports
        warnings.simplefilter("ignore")
        try:
            from autorank import autorank
        except ImportError as error:
            raise ConfigError(
                f"a ranking needs the package autorank ({error}): pip install -e '.[ranking]' -c constraints.txt"
            ) from error
        made = autorank(table, alpha=ALPHA, force_mode="nonparametric")
    return float(made.pvalue), float(made.cd)


def said(ranking: Ranking) -> list[str]:
    """The ranking in sentences, the answer first."""
    order = ", ".join(f"{name} {value:.2f}" for name, value in ranking.ranks.items())
    first = f"Mean ranks over {ranking.tasks}, 1 is best: {order}."
    if ranking.p is None or ranking.distance is None:
        few_tasks = ranking.num_tasks < FEWEST_TASKS
        why = f"fewer than {FEWEST_TASKS} tasks" if few_tasks else "all methods tie on every task"
        return [first, f"Nothing is tested: {why}."]
    tested = f"Friedman's test: p = {ranking.p:.2g}" if ranking.p >= 1e-4 else "Friedman's test: p < 0.0001"
    if ranking.p >= ALPHA:
        return [first, f"{tested}: the methods are not told apart, however their ranks differ."]
    return [
        first,
        f"{tested}. Nemenyi's critical difference at 5 % is {ranking.distance:.2f}: "
        "methods whose mean ranks are farther apart differ.",
        f"Not told apart: {'; '.join(', '.join(group) for group in ranking.alike) or 'none'}.",
    ]
