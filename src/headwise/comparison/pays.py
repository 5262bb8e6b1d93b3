"""Where head-wise adaptation pays: paired differences by task and by group of tasks. Never imports torch.

What differences say over all tasks together is said in `headwise.comparison.contrast`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from headwise.comparison.contrast import FEWEST, contrast, interval, means, resample
from headwise.results.records import GROUP_SIZES

PAYS = ["row", "phase", "kind", "column", "mean", "low", "high", "p", "holm", "tasks", "pairs"]
GROUP, INTERACTION, IMPROVEMENT, TASK = "group", "interaction", "improvement", "task"
LATER, EARLIER = "structured", "natural"
"""The groups whose contrasts are subtracted: heads are said to matter where the task is about structure."""
OVERALL = "all tasks"
_ROUNDING = 1e-9
"""Spread, in percentage points, that is the rounding of two accuracies and no spread."""


def pays(lines: pd.DataFrame) -> pd.DataFrame:
    """Return what each row's differences of each kind say of single tasks and of groups of tasks.

    Returns:
        Of the columns `PAYS`, percentage points but for the probability of improvement. For each row and kind of
        difference a line per group of VTAB-1k that has a task, ``structured - natural`` where both have,
        the probability of improvement over all tasks, and a line per task with its p value.
    """
    made = []
    for (row, phase), part in lines.groupby(["row", "phase"]):
        made += [{"row": row, "phase": phase, **said} for said in _of(part)]
    frame = pd.DataFrame(made, columns=PAYS)
    # pandas would keep a column that is None throughout as objects
    return frame.astype(dict.fromkeys(("low", "high", "p", "holm"), float))


def _of(part: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The lines of one row and kind of difference."""
    # sorted, so that the draws of the bootstrap do not depend on the order in which records are read
    tasks = {str(column): sorted(cell["value"].tolist()) for column, cell in part.groupby("column")}
    group_of = dict(zip(part["column"], part["group"], strict=True))
    groups = {name: {task: tasks[task] for task in tasks if group_of[task] == name} for name in GROUP_SIZES}
    for name, members in groups.items():
        if members:
            yield {"kind": GROUP, "column": name, **_ends(contrast(members))}
    if groups[LATER] and groups[EARLIER]:
        yield {"kind": INTERACTION, "column": f"{LATER} - {EARLIER}", **interaction(groups[LATER], groups[EARLIER])}
    pairs = [list(zip(cell["own"], cell["other"], strict=True)) for _, cell in part.groupby("column")]
    yield {"kind": IMPROVEMENT, "column": OVERALL, **improvement(pairs)}
    found = {task: p_value(values) for task, values in tasks.items()}
    adjusted = holm({task: p for task, p in found.items() if p is not None})
    for task, values in tasks.items():
        tested = {"p": found[task], "holm": adjusted.get(task)}
        yield {"kind": TASK, "column": task, "mean": float(np.mean(values)), **tested, "tasks": 1, "pairs": len(values)}


def _ends(total: Any) -> dict[str, Any]:
    return {name: getattr(total, name) for name in ("mean", "low", "high", "tasks", "pairs")}


def interaction(later: Mapping[str, Sequence[float]], earlier: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return how much more one group's differences of its tasks' seeds, percentage points, are than another's.

    Both groups are resampled, each by itself, as `headwise.comparison.contrast.bootstrap` does.

    Returns:
        ``mean``; ``low`` and ``high``, the ends of its 95 % interval, None where a group has fewer than `FEWEST`
        pairs; ``tasks`` and ``pairs`` of both.
    """
    totals = [contrast(group) for group in (later, earlier)]
    ends: tuple[float | None, float | None] = (None, None)
    if all(total.pairs >= FEWEST for total in totals):
        # the draws of the groups' own intervals, which begin with one seed: in another order they are independent
        first, second = (means(tuple(tuple(sorted(part[task])) for task in sorted(part))) for part in (later, earlier))
        ends = interval(first - np.random.default_rng(1).permutation(second))
    return {
        "mean": totals[0].mean - totals[1].mean,
        "low": ends[0],
        "high": ends[1],
        "tasks": sum(total.tasks for total in totals),
        "pairs": sum(total.pairs for total in totals),
    }


def improvement(tasks: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Return the probability that a run of the row is better than one of the other on the same task.

    It is the mean over the tasks of P(X > Y) over all pairs of a run X and a run Y of that task, whatever their seeds;
    ties count half (Agarwal et al., NeurIPS 2021, rliable). The bootstrap draws tasks, then seeds of each task drawn,
    both runs of a seed together, since they belong together.

    Args:
        tasks: of each task the accuracies of both runs, by seed.
    Returns:
        ``mean``; ``low`` and ``high``, the ends of its 95 % interval, None of fewer than `FEWEST` pairs; ``tasks``,
        ``pairs``.
    """
    ordered = sorted(sorted(task) for task in tasks)
    sizes = np.array([len(task) for task in ordered])
    width = int(sizes.max()) + 1
    # (tasks, X, Y): 1 where X is better, 0.5 where they tie; a place more, as `resample` asks for
    better = np.zeros((len(ordered), width, width))
    for place, task in enumerate(ordered):
        own, other = np.array(task).T
        better[place, : len(task), : len(task)] = (np.sign(own[:, None] - other) + 1) / 2

    def value(drawn: NDArray[Any], seeds: NDArray[Any]) -> NDArray[Any]:
        rows = [(drawn * width + seeds[..., place]) * width for place in range(width - 1)]
        sums = sum(better.take(row + seeds[..., place]) for row in rows for place in range(width - 1))
        return np.asarray(sums / sizes[drawn] ** 2)

    pairs = int(sizes.sum())
    ends = interval(resample(sizes, value)) if pairs >= FEWEST else (None, None)
    mean = float((better.sum((1, 2)) / sizes**2).mean())
    return {"mean": mean, "low": ends[0], "high": ends[1], "tasks": len(sizes), "pairs": pairs}


def p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of a paired t test: would differences of mean zero lie so far from it?

    Returns:
        In 0 .. 1; None of a single difference, and where all are the same, which says nothing of chance.
    """
    number = len(differences)
    deviation = float(np.std(differences, ddof=1)) if number > 1 else 0.0
    if deviation <= _ROUNDING:
        return None
    statistic = float(np.mean(differences)) / (deviation / math.sqrt(number))
    # the lower tail twice: one minus the upper would round small p values away
    return 2 * float(stdtr(number - 1, -abs(statistic)))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p values of one family adjusted by Holm's step-down rule: the chance of any false one stays below.

    Returns:
        The same names in the same order, at most 1.
    """
    largest, adjusted = 0.0, {}
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        # no larger p value may come out smaller than one before it
        largest = max(largest, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in values}
