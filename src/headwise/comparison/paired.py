"""Differences between runs that belong together, seed by seed, as lines of a table. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from headwise.comparison.comparable import Places
from headwise.comparison.contrast import contrast
from headwise.comparison.controls import NO_MASK, Match
from headwise.errors import ConfigError, suggest
from headwise.results.records import Result

LINE = ["row", "phase", "column", "group", "repeat", "value"]
PAIRED = [*LINE, "own", "other"]
"""Of a difference also the two accuracies, percent, that it is of."""
CONTRAST = ["row", "phase", "mean", "low", "high", "wins", "ties", "losses", "tasks", "pairs"]


def line(result: Result, where: Places, phase: str, value: float | None) -> dict[str, Any]:
    """Return one line of a table's data, of the columns `LINE`."""
    row, column = where[result.key]
    return dict(zip(LINE, (row, phase, column, result.group, result.repeat, value), strict=True))


def pair(matches: Iterable[Match], where: Places) -> pd.DataFrame:
    """Return the differences of head-wise runs to their controls, seed by seed.

    Returns:
        Lines of the columns `PAIRED`; ``phase`` says which difference, ``value`` is in percentage points.
    """
    lines = [
        line(match.result, where, f"{match.phase} - {match.against}", match.value)
        | {"own": match.accuracy, "other": match.reached}
        for match in matches
    ]
    return pd.DataFrame(lines, columns=PAIRED)


def ratios(pairs: Iterable[tuple[Result, Result]], where: Places) -> pd.DataFrame:
    """Return the accuracy of runs with heads off over that of the same run with none off, seed by seed.

    Returns:
        Lines of the columns `LINE`; ``phase`` is the last tested one, over what.
    """
    lines = [
        line(run, where, f"P{len(run.tested)} / {NO_MASK}", float(run.accuracy or 0.0) / float(base.accuracy))
        for run, base in pairs
        if base.accuracy
    ]
    return pd.DataFrame(lines, columns=LINE)


def contrasts(lines: pd.DataFrame) -> pd.DataFrame:
    """Return a `Contrast` for each row and kind of difference, a line each of the columns `CONTRAST`."""
    totals = []
    for (row, phase), part in lines.groupby(["row", "phase"]):
        total = contrast({str(column): values["value"] for column, values in part.groupby("column")})
        totals.append({"row": row, "phase": phase, **vars(total)})
    frame = pd.DataFrame(totals, columns=CONTRAST)
    # pandas would keep a column in which no row has an interval as objects, all None
    return frame.astype({"low": float, "high": float})


def against(lines: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return the differences of two rows of one table, task by task and seed by seed.

    Args:
        lines: of the columns `LINE`, of accuracies.
        first, second: rows as the table names them, ``lora`` or ``heart_lora (ne3)``; with ``:P1`` of that tested
            phase, else of the last.
    Returns:
        Lines of the columns `PAIRED`, of the first row; empty where they share no task and seed.
    Raises:
        ConfigError: if a row or phase does not exist, or both are the same.
    """
    (left, row, phase), (right, *name) = chosen(lines, first), chosen(lines, second)
    if [row, phase] == name:
        raise ConfigError(f"{first!r} and {second!r} are the same runs; name two that differ")
    cell = ["column", "group", "repeat"]
    # pooled results may have a task and seed twice, of different settings: their mean is compared
    left, right = (part.groupby(cell, as_index=False)["value"].mean() for part in (left, right))
    joined = left.rename(columns={"value": "own"}).merge(right.rename(columns={"value": "other"}), on=cell)
    joined["value"] = joined["own"] - joined["other"]
    joined["row"], joined["phase"] = row, f"{phase} - {' '.join(name)}"
    return joined[PAIRED]


def chosen(lines: pd.DataFrame, given: str) -> tuple[pd.DataFrame, str, str]:
    """Return the lines of a row's phase, the row and the phase; a row that is none, or several, is refused."""
    row, wanted = _split(given)
    rows = sorted(set(lines["row"]))
    if row not in rows:
        # a row's name without what stands in brackets behind it is enough where one row alone has it
        variants = [name for name in rows if re.sub(r" [(\[].*", "", name) == row]
        if len(variants) != 1:
            what = "several variants" if variants else "no finished run"
            raise ConfigError(f"{row!r} has {what} here{suggest(row, variants or rows)}")
        (row,) = variants
    part = lines[lines["row"] == row]
    phases = sorted(set(part["phase"]))
    if wanted and wanted not in phases:
        raise ConfigError(f"{row!r} has no tested phase {wanted!r}{suggest(wanted, phases)}")
    phase = wanted or phases[-1]
    return part[part["phase"] == phase], row, phase


def _split(given: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+):(P\d+)", given)
    return (match[1], match[2]) if match else (given, "")
