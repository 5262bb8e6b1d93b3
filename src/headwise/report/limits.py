"""Ends of axes that a few far values do not flatten. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

FAR = 6.0
"""Median distances from the median beyond which a value is far."""
LONGER = 3.0
"""How many times as long an axis may be for the sake of far values."""
LEAST = 0.5
"""Percentage points below which distances are no larger."""


def robust(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest of values; without far ones where these would make the axis `LONGER`.

    Of two values that are apart neither is far.
    """
    middle = statistics.median(values)
    spread = max(statistics.median(abs(value - middle) for value in values), LEAST)
    near = [value for value in values if abs(value - middle) <= FAR * spread]
    whole, part = (max(some) - min(some) for some in (values, near))
    shown = near if whole > LONGER * max(part, LEAST) else values
    return min(shown), max(shown)


def reach(rows: Iterable[Sequence[float]]) -> float:
    """Return what an axis about zero must reach on either side, for rows that share it; 1 without any value but 0.

    A far value of a row is left out, and so is a row of which all are far: it may reach `LONGER` times as far as
    half of the rows do.
    """
    ends = [max(map(abs, robust(row))) for row in rows if row]
    wide = sorted(end for end in ends if end)
    return min(wide[-1], LONGER * wide[(len(wide) - 1) // 2]) if wide else 1.0
