"""What differences of runs that belong together say as one: a mean over tasks, and its bootstrap interval.

Loads neither torch nor pandas: a run's ending judges with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL = 10_000, 0.95
FEWEST = 6
"""Pairs below which there is no interval and nothing is clear: five of five would not pass a sign test at 5 %."""
_BATCH = 200_000
Drawn = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""From tasks drawn, (step, tasks), and their seeds, (step, tasks, most), to a value of each drawn task."""


@dataclass(frozen=True)
class Contrast:
    """What paired differences say together, in percentage points.

    Attributes:
        mean: over the tasks, of each task's mean over its seeds.
        low, high: 95 % bootstrap interval of the mean; None of fewer than `FEWEST` pairs, where it is far too
            narrow.
        wins, ties, losses: pairs above, at and below zero.
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
    """Sum up the differences, percentage points, of each task's seeds; at least one in all."""
    # sorted, so that the draws of the bootstrap do not depend on the order in which records are read
    tasks = [sorted(float(value) for value in differences[name]) for name in sorted(differences)]
    tasks = [values for values in tasks if values]
    every = [value for values in tasks for value in values]
    ends = bootstrap(tasks) if len(every) >= FEWEST else None
    return Contrast(
        mean=float(np.mean([np.mean(values) for values in tasks])),
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        wins=sum(value > 0 for value in every),
        ties=sum(value == 0 for value in every),
        losses=sum(value < 0 for value in every),
        tasks=len(tasks),
        pairs=len(every),
    )


def bootstrap(tasks: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Percentile interval of the mean over tasks, resampling tasks, then the seeds of each task drawn.

    With one task only its seeds are drawn again. Few tasks or seeds give too narrow an interval.

    Args:
        tasks: the values of each task's seeds.
    Returns:
        The ends that leave out 2.5 % on either side; None for fewer than two values.
    """
    if sum(len(values) for values in tasks) < 2:
        return None
    return _ends(tuple(map(tuple, tasks)))


Tasks = tuple[tuple[float, ...], ...]


@functools.lru_cache(maxsize=4096)
def _ends(tasks: Tasks) -> tuple[float, float]:
    # a table's contrasts, the verdicts on them and its only group of tasks ask for the same intervals
    return interval(means(tasks))


@functools.lru_cache(maxsize=8)
def means(tasks: Tasks) -> NDArray[Any]:
    """The means behind `bootstrap`, one of each resample; kept for the next who asks, so nobody may change them."""
    sizes = np.array([len(values) for values in tasks])
    # a place more than the most seeds, for the draws that do not count
    table = np.zeros((len(tasks), sizes.max() + 1))
    for place, values in enumerate(tasks):
        table[place, : len(values)] = values

    def value(drawn: NDArray[Any], seeds: NDArray[Any]) -> NDArray[Any]:
        # indices into the flat table, and a sum seed by seed: several times as fast as along a short last axis
        first = drawn * table.shape[1]
        sums = sum(table.take(first + seeds[..., place]) for place in range(seeds.shape[-1]))
        return np.asarray(sums / sizes[drawn])

    draws = resample(sizes, value)
    draws.setflags(write=False)
    return draws


def resample(sizes: NDArray[Any], value: Drawn) -> NDArray[Any]:
    """Draw tasks with replacement, then the seeds of each task drawn; returns the mean value of each of `RESAMPLES`.

    Args:
        sizes: number of seeds of each task. A drawn task has as many draws of its seeds; its other places up to the
            most seeds of any task hold that number, which is the seed of none.
        value: of each task drawn.
    """
    most = int(sizes.max())
    # one seed for all, so that the same pairs have the same interval wherever they stand
    rng = np.random.default_rng(0)
    # so many resamples at once that an array of indices, (step, tasks, seeds), has about `_BATCH` entries
    step = max(1, _BATCH // (len(sizes) * most))
    drawings = []
    for start in range(0, RESAMPLES, step):
        shape = (min(step, RESAMPLES - start), len(sizes))
        drawn = rng.integers(len(sizes), size=shape)
        width = sizes[drawn][..., None]
        # tasks have their own numbers of seeds: a uniform number each, (step, tasks, most), scaled to that of its task
        seeds = (rng.random((*shape, most)) * width).astype(np.intp)
        if sizes.min() < most:
            seeds[np.arange(most) >= width] = most
        drawings.append(value(drawn, seeds).mean(-1))
    return np.concatenate(drawings)


def interval(draws: NDArray[Any]) -> tuple[float, float]:
    """The ends that leave out 2.5 % of the draws on either side."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)
