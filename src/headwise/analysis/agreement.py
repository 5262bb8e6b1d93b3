"""Do two orders of the same things agree? Rank correlation, the overlap of the largest, and what chance gives.

Legend: n things, D draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
        top: share of the k largest of one that are among the k largest of the other; NaN where one does not vary.
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
    def is_chance(self) -> bool | None:
        """Whether a random order correlates as much; None where there is no correlation."""
        return None if np.isnan(self.spearman) else self.low <= self.spearman <= self.high


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
    members = among_largest(other, k)[np.argsort(-noise, axis=1)[:, :k]]
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
    """Share of the k largest of one list that are among the k largest of the other; of equal ones by chance.

    NaN where one list does not vary.
    """
    if not np.ptp(one) or not np.ptp(other):
        return float("nan")
    return float(among_largest(one, k) @ among_largest(other, k)) / k


def among_largest(values: Any, k: int) -> Values:
    """Chance of each to be among the k largest, (n,): 0 or 1, between them where equal ones share the last places."""
    values = np.asarray(values, dtype=float)
    last = np.sort(values)[-k]
    sure, equal = values > last, values == last
    return sure + equal * (k - sure.sum()) / equal.sum()


def best_of(scores: int, n: int) -> float:
    """What the best of several independent random orders of n things stays below in 97.5 of 100 cases, as Spearman."""
    return float(stats.norm.ppf((BAND[1] / 100) ** (1 / scores)) / np.sqrt(n - 1))


Masks = Mapping[Any, NDArray[Any]]
"""By projection and stage what is off (0) and on (1), (layers, heads)."""


def jaccard(one: Masks, other: Masks) -> float:
    """Jaccard index of what is off in both; NaN where nothing is off."""
    off, others = (np.concatenate([mask.ravel() == 0 for mask in masks.values()]) for masks in (one, other))
    return float((off & others).sum() / (off | others).sum()) if (off | others).any() else float("nan")


def jaccard_by_chance(one: Masks, other: Masks, is_global: bool, draws: int, seed: int) -> tuple[float, float, float]:
    """Mean and band of `jaccard` with the heads of the second in random order.

    Args:
        one, other: what is off.
        is_global: whether the second was chosen for whole stages: its heads then change places in all layers alike.
        draws: random orders.
        seed: of them.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        mixed = {}
        for name, mask in other.items():
            if is_global:
                mixed[name] = mask[:, random.permutation(mask.shape[1])]
            else:
                mixed[name] = random.permuted(mask, axis=1)
        drawn.append(jaccard(one, mixed))
    low, high = np.percentile(drawn, BAND)
    return float(np.mean(drawn)), float(low), float(high)
