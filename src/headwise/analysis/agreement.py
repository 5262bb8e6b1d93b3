"""Do two orders of the same things agree? Rank correlation, the overlap of the largest, and what chance gives.

Legend: n things, D draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from headwise.analysis.bands import COVERAGE, percentiles
from headwise.errors import ConfigError

Values = NDArray[np.float64]
FEW = 7
"""Of so few things every order is looked at."""


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
    low, high = percentiles(correlations(noise, other))
    members = among_largest(other, k)[np.argsort(-noise, axis=1)[:, :k]]
    top_low, top_high = percentiles(members.mean(axis=1))
    return Agreement(n, spearman(one, other), low, high, shared(one, other, k), top_low, top_high, k)


def standard_ranks(values: Any) -> Values:
    """Ranks along the last axis, ties at their mean rank, less their mean and over their deviation; NaN if all tie."""
    ranks = stats.rankdata(np.asarray(values, dtype=float), axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(ranks).mean(-1, keepdims=True))
    return np.asarray(np.divide(ranks, deviation, out=np.full_like(ranks, np.nan), where=deviation > 0))


def of_ranks(one: Values, other: Values) -> Values:
    """Spearman's correlation along the last axis of what `standard_ranks` gave: it is Pearson's of the ranks."""
    return np.asarray(np.clip((one * other).mean(-1), -1.0, 1.0))


def correlations(one: Any, other: Any) -> Values:
    """Spearman's along the last axis, (...); NaN where one of the two does not vary."""
    return of_ranks(standard_ranks(one), standard_ranks(other))


def spearman(one: Any, other: Any) -> float:
    """Rank correlation of two lists, ties at their mean rank; NaN where one does not vary."""
    return float(correlations(one, other))


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
    """What the best of several independent random orders of n things does not exceed in 97.5 of 100 cases, as Spearman.

    At most 1: of few things even the right order is nothing that chance does not do.
    """
    share = (0.5 + COVERAGE / 2) ** (1 / scores)
    if n <= FEW:
        every = correlations(list(itertools.permutations(range(n))), range(n))
        return round(float(np.quantile(every, share, method="inverted_cdf")), 12)
    t = float(stats.t.ppf(share, n - 2))
    return float(t / np.sqrt(n - 2 + t**2))


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
    return float(np.mean(drawn)), *percentiles(drawn)
