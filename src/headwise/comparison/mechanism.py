"""Where second phases lie, as their records say, set against what they gained. Never imports torch.

The measures are those of `headwise.training.mechanism`; pictures of single heads are those of kind ``overlap``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy.special import stdtr

from headwise.comparison.comparable import Places
from headwise.results.records import Result

MEASURES = {
    "shared": "in another head's rows",
    "own": "outside all others' rows",
    "rows": "in the first phase's rows",
    "columns": "in the first phase's columns",
}
"""Shares of the energy of a head's second update, means over all heads."""
RUNS = ["row", "column", "gain", *MEASURES]
FEWEST = 6
"""Runs from which on a correlation is given."""
_ROUNDING = 1e-9


def runs(results: Sequence[Result], where: Places) -> pd.DataFrame:
    """Return one line per run whose last phase has measures and a tested phase before it.

    Returns:
        Columns ``row``, ``column`` (the task), ``gain`` of the last phase over the one before (percentage points), and
        the `MEASURES` that its record has, 0 .. 1.
    """
    lines: list[dict[str, Any]] = []
    for result in results:
        tested = result.tested
        found = tested[-1].mechanism if tested else {}
        if len(tested) < 2 or not found:
            continue
        row, column = where[result.key][:2]
        gain = float(tested[-1].accuracy or 0.0) - float(tested[-2].accuracy or 0.0)
        lines.append({"row": row, "column": column, "gain": gain, **{name: found.get(name) for name in MEASURES}})
    return pd.DataFrame(lines, columns=RUNS)


def lies(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the means of each row and task over its runs, of the columns `RUNS`, and ``n``, their number."""
    keys = ["row", "column"]
    values = lines.astype(dict.fromkeys(["gain", *MEASURES], float)).groupby(keys)
    return values.mean().join(values.size().rename("n")).reset_index()


def correlations(lines: pd.DataFrame) -> list[str]:
    """Return a sentence on how the gain goes with each measure over all runs, task by task; none of too few runs.

    Gains and measures are ranked within each task, since tasks differ in both, and what the ranks differ from their
    task's mean is correlated over all tasks. A task with a single run orders nothing and is left out.
    """
    said = []
    for name, words in MEASURES.items():
        part = lines[["column", "gain", name]].dropna().astype({"gain": float, name: float})
        # what differs by less than a hundredth, as of updates that fill all there is, orders nothing
        part[name] = part[name].round(2)
        part = part[part.groupby("column")["gain"].transform("size") > 1]
        tasks = part.groupby("column")[["gain", name]]
        ranks = tasks.rank(pct=True)
        ranks -= ranks.groupby(part["column"]).transform("mean")
        if len(part) < FEWEST or any(ranks[key].std() < _ROUNDING for key in ranks):
            continue
        along = float(ranks["gain"].corr(ranks[name]))
        p = _p_value(along, len(part) - part["column"].nunique() - 1)
        said.append(f"{words} {along:+.2f} (n = {len(part)}, p {p:.2g})")
    if not said:
        return []
    return [
        f"Rank correlation of the gain with where the second phase lies, over n runs, ranked within their tasks: "
        f"{'; '.join(said)}. The p values are of each by itself."
    ]


def _p_value(correlation: float, freedom: int) -> float:
    """Two-sided, of a correlation with so many degrees of freedom: would unrelated numbers correlate as much?"""
    left = max(1.0 - correlation**2, _ROUNDING)
    return 2 * float(stdtr(freedom, -abs(correlation) * math.sqrt(freedom / left)))
