"""Do two orders of the same things agree? Rank correlation, the overlap of the largest, and what chance gives.

Legend: n things, D draws.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headwise.errors import ConfigError

Values = NDArray[np.float64]
BAND = (2.5, 97.5)
"""Percentiles between which a random order falls in 95 of 100 cases."""


@dataclass(frozen=True)
class Agreement:
    """How far two orders agree, beside what random ones do.

    Attributes:
        n: things that are ordered.
        spearman: rank correlation; NaN where one of the two does not vary.
        low, high: ends of the band of a random order's; NaN where the truth does not vary.
        top: share of the k largest of one that are among the k largest of the other.
        top_low, top_high: ends of the band of a random order's.
        k: how many are taken for the largest.
    """

    n: int
    spearman: float
    low: float
    high: float
    top: float
    top_low: float
    top_high: float
    k: int

    @property
    def is_chance(self) -> bool:
        """Whether a random order correlates as much."""
        return not (self.spearman < self.low or self.spearman > self.high)


def agreement(score: Any, truth: Any, k: int, draws: int, seed: int) -> Agreement:
    """Compare a score with the truth.

    Args:
        score, truth: (n,), larger where a thing matters more.
        k: size of the set of the largest.
        draws: random orders behind the bands.
        seed: of them.

    Raises:
        ConfigError: for unequal lengths, fewer than three things, or a k that is none of 1 .. n.
    """
    one, other = np.asarray(score, dtype=float), np.asarray(truth, dtype=float)
    n = len(other)
    if one.shape != other.shape or n < 3:
        raise ConfigError(f"an order is compared of three or more things in each of two lists, got {len(one)} and {n}")
    if not 1 <= k <= n:
        raise ConfigError(f"the k largest of {n} are asked for, got k={k}")
    noise = np.random.default_rng(seed).permuted(np.tile(np.arange(float(n)), (draws, 1)), axis=1)
    # Spearman's is Pearson's of the ranks, for all draws at once
    ranks = stats.zscore(stats.rankdata(other)) if np.ptp(other) else np.full(n, np.nan)
    low, high = np.percentile(stats.zscore(noise, axis=1) @ ranks / n, BAND)
    members = np.isin(np.argsort(-noise, axis=1)[:, :k], largest(other, k))
    top_low, top_high = np.percentile(members.mean(axis=1), BAND)
    return Agreement(
        n, spearman(one, other), float(low), float(high), shared(one, other, k), float(top_low), float(top_high), k
    )


def spearman(one: Any, other: Any) -> float:
    """Rank correlation, ties at their mean rank; NaN where one list does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(one, other).statistic)


def shared(one: Any, other: Any, k: int) -> float:
    """Share of the k largest of one list that are among the k largest of the other; of equal ones the first."""
    return len(set(largest(one, k)) & set(largest(other, k))) / k


def largest(values: Any, k: int) -> list[int]:
    """Positions of the k largest; of equal ones the first."""
    order: list[int] = np.argsort(-np.asarray(values, dtype=float), kind="stable")[:k].tolist()
    return order


def overlap_of_masks(one: Any, other: Any) -> tuple[float, float]:
    """Agreement of two choices of what is off (0) and on (1), (n,) each.

    Returns:
        Jaccard index of what is off in both, and that of random choices of the same sizes (in expectation, by the
        hypergeometric distribution). NaN where nothing is off.
    """
    off, others = np.asarray(one) == 0, np.asarray(other) == 0
    total, first, second = len(off), int(off.sum()), int(others.sum())
    if not first + second:
        return float("nan"), float("nan")
    both = np.arange(min(first, second) + 1)
    chances = stats.hypergeom(total, first, second).pmf(both)
    null = float((chances * both / (first + second - both)).sum())
    return float((off & others).sum() / (off | others).sum()), null
