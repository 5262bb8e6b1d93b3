"""What chance gives: the one definition of the band of random draws, which every null and every picture uses.

Legend: N draws.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

COVERAGE = 0.95
"""Share of further random draws that fall into a band."""
Bounds = tuple[float, float]
"""Between which a measure can lie at all."""
FREE, POSITIVE, SHARE, COSINE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0), (-1.0, 1.0)
EDGE = 1e-9
"""What is nearer to a bound, as a share of all that is possible, counts as this near."""
_ROUNDING = 1e-6
Place = Literal["within", "above", "below"]


class Band(NamedTuple):
    """What random draws give: their mean, and the ends between which a further draw falls with `COVERAGE`."""

    mean: Tensor
    low: Tensor
    high: Tensor

    def holds(self, value: Tensor) -> Tensor:
        """Whether values are as a random draw could be; rounding is forgiven, NaN is nowhere."""
        slack = _ROUNDING * (1.0 + self.mean.abs())
        return (value >= self.low - slack) & (value <= self.high + slack)

    def place(self, value: Tensor, digits: int) -> Place | None:
        """Where one value stands, as all are shown with so many digits; None if it, or the band, is NaN."""
        if not bool(torch.isfinite(value) & torch.isfinite(self.low) & torch.isfinite(self.high)):
            return None
        shown, low, high = (round(float(number), digits) for number in (value, self.low, self.high))
        return "within" if low <= shown <= high else "above" if shown > high else "below"

    def columns(self, name: str, place: tuple[int, ...]) -> dict[str, float]:
        """The columns of a table that say what random draws give for one of the values of a measure."""
        return {f"{name}_random_{end}": float(getattr(self, end)[place]) for end in self._fields}


def band(draws: Tensor, bounds: Bounds = FREE, edge: float = EDGE) -> Band:
    """The prediction interval of one more draw, from (N, ...) of them: mean +- t s sqrt(1 + 1 / N), in float64.

    Of a measure with two bounds it is formed of the log-odds, which have none, and taken back: so no end lies beyond a
    bound, and a value at a bound that no draw comes near lies outside.

    Args:
        edge: what is nearer to a bound, as a share of what lies between both, is taken for this near; of counts half a
            step.
    """
    draws = draws.double()
    number = len(draws)
    scaled = _scaled(draws, bounds, edge)
    middle, deviation = scaled.mean(0), scaled.std(0)
    reach = float(stats.t.ppf((1 + COVERAGE) / 2, number - 1)) * (1 + 1 / number) ** 0.5 * deviation
    mean, same = draws.mean(0), (draws == draws[:1]).all(0)
    ends = (torch.where(same, mean, _back(end, bounds)) for end in (middle - reach, middle + reach))
    return Band(mean, *ends)


def percentiles(draws: Any) -> tuple[float, float]:
    """Ends of the band of draws so many that they give it themselves, (N,)."""
    ends: NDArray[np.float64] = np.percentile(draws, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return float(ends[0]), float(ends[1])


def _scaled(draws: Tensor, bounds: Bounds, edge: float) -> Tensor:
    low, high = bounds
    if math.isinf(high):
        return draws
    return torch.logit(((draws - low) / (high - low)).clamp(edge, 1 - edge))


def _back(ends: Tensor, bounds: Bounds) -> Tensor:
    low, high = bounds
    return ends.clamp(min=low) if math.isinf(high) else low + (high - low) * torch.sigmoid(ends)
