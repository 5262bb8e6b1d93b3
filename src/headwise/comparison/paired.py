"""Differences between runs that belong together, seed by seed, and what they say together. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from headwise.comparison.comparable import Places
from headwise.comparison.controls import NO_MASK, Match
from headwise.errors import ConfigError, suggest
from headwise.results.records import Result

LINE = ["row", "phase", "column", "group", "repeat", "value"]
CONTRAST = ["row", "phase", "mean", "low", "high", "wins", "ties", "losses", "tasks", "pairs"]
RESAMPLES, LEVEL = 10_000, 0.95
FEWEST = 6
"""Pairs below which there is no interval and nothing is clear: five of five would not pass a sign test at 5 %."""
_BATCH = 200_000


def line(result: Result, where: Places, phase: str, value: float | None) -> dict[str, Any]:
    """Return one line of a table's data, of the columns `LINE`."""
    row, column = where[result.key]
    return dict(zip(LINE, (row, phase, column, result.group, result.repeat, value), strict=True))


def pair(matches: Iterable[Match], where: Places) -> pd.DataFrame:
    """Return the differences of head-wise runs to their controls, seed by seed.

    Args:
        matches: of one table.
        where: rows and columns of its results.
    Returns:
        Lines of the columns `LINE`; ``phase`` says which difference, ``value`` is in percentage points.
    """
    lines = [line(match.result, where, f"{match.phase} - {match.against}", match.value) for match in matches]
    return pd.DataFrame(lines, columns=LINE)


def ratios(pairs: Iterable[tuple[Result, Result]], where: Places) -> pd.DataFrame:
    """Return the accuracy of runs with heads off over that of the same run with none off, seed by seed.

    Args:
        pairs: as `headwise.comparison.controls.unmasked` gives them.
        where: rows and columns of the runs with heads off.
    Returns:
        Lines of the columns `LINE`; ``phase`` is the last tested one, over what.
    """
    lines = [
        line(run, where, f"P{len(run.tested)} / {NO_MASK}", float(run.accuracy or 0.0) / float(base.accuracy))
        for run, base in pairs
        if base.accuracy
    ]
    return pd.DataFrame(lines, columns=LINE)


@dataclass(frozen=True)
class Contrast:
    """What paired differences say together, in percentage points.

    Attributes:
        mean: over the tasks, of each task's mean over its seeds.
        low, high: 95 % bootstrap interval of the mean; None of fewer than `FEWEST` pairs, where it is far too
            narrow.
        wins, ties, losses: pairs above, at and below zero.
        tasks, pairs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    tasks: int
    pairs: int


def contrast(differences: Mapping[str, Iterable[float]]) -> Contrast:
    """Sum up paired differences.

    Args:
        differences: task -> differences of its seeds, percentage points; at least one in all.
    """
    # sorted, so that the draws of the bootstrap do not depend on the order in which records are read
    tasks = [sorted(float(value) for value in differences[name]) for name in sorted(differences)]
    tasks = [values for values in tasks if values]
    every = [value for values in tasks for value in values]
    interval = bootstrap(tasks) if len(every) >= FEWEST else None
    return Contrast(
        mean=float(np.mean([np.mean(values) for values in tasks])),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        wins=sum(value > 0 for value in every),
        ties=sum(value == 0 for value in every),
        losses=sum(value < 0 for value in every),
        tasks=len(tasks),
        pairs=len(every),
    )


def bootstrap(
    tasks: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean over tasks, resampling tasks, then the seeds of each task drawn.

    With one task only its seeds are drawn again. Few tasks or seeds give too narrow an interval.

    Args:
        tasks: the values of each task's seeds.
        resamples: how often; the draws are those of `seed`.
    Returns:
        The ends that leave out 2.5 % on either side; None for fewer than two values.
    """
    if sum(len(values) for values in tasks) < 2:
        return None
    counts = np.array([len(values) for values in tasks])
    most = int(counts.max())
    table = np.zeros((len(tasks), most))
    for place, values in enumerate(tasks):
        table[place, : len(values)] = values
    rng = np.random.default_rng(seed)
    # so many resamples at once that an array of indices, (step, tasks, seeds), has about `_BATCH` entries
    step = max(1, _BATCH // (len(tasks) * most))
    means = []
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), len(tasks))
        drawn = rng.integers(len(tasks), size=shape)
        width = counts[drawn][..., None]
        # tasks have their own numbers of seeds: a uniform number each, (step, tasks, most), scaled to that of its task
        seeds = (rng.random((*shape, most)) * width).astype(np.intp)
        # a task with fewer seeds counts as many draws as it has seeds, the rest of its places are padding
        kept = np.arange(most) < width
        sums = np.where(kept, table[drawn[..., None], seeds], 0.0).sum(-1)
        means.append((sums / width[..., 0]).mean(-1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def contrasts(lines: pd.DataFrame) -> pd.DataFrame:
    """Return a `Contrast` for each row and kind of difference.

    Args:
        lines: of the columns `LINE`, as `pair` gives them.
    Returns:
        One line each, of the columns `CONTRAST`.
    """
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
        Lines of the columns `LINE`, of the first row; empty where they share no task and seed.
    Raises:
        ConfigError: if a row or phase does not exist, or both are the same.
    """
    (left, row, phase), (right, *name) = chosen(lines, first), chosen(lines, second)
    if [row, phase] == name:
        raise ConfigError(f"{first!r} and {second!r} are the same runs; name two that differ")
    cell = ["column", "group", "repeat"]
    # pooled results may have a task and seed twice, of different settings: their mean is compared
    left, right = (part.groupby(cell, as_index=False)["value"].mean() for part in (left, right))
    joined = left.merge(right, on=cell, suffixes=("", "_other"))
    joined["value"] -= joined["value_other"]
    joined["row"], joined["phase"] = row, f"{phase} - {' '.join(name)}"
    return joined[LINE]


def chosen(lines: pd.DataFrame, given: str) -> tuple[pd.DataFrame, str, str]:
    """Return the lines of a row's phase, the row, and the phase.

    Args:
        lines: of the columns `LINE`.
        given: as for `against`.
    Raises:
        ConfigError: if there is none, or several variants; lists what there is.
    """
    row, wanted = _split(given)
    rows = sorted(set(lines["row"]))
    if row not in rows:
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
