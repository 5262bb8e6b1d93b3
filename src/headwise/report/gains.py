"""Did head-wise adaptation pay? Matched runs, subtracted pair by pair. Never imports torch.

A pair is two runs of one task and one seed that differ in one thing: the second phase, or the heads that are off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from headwise.results.records import Result
from headwise.tables.comparable import Places
from headwise.tables.controls import CONTROLS, HEADS, KINDS, MASK, PHASE, Match, is_size_control
from headwise.tables.paired import Contrast, contrast

QUESTIONS = {PHASE: "A second, head-wise phase", HEADS: "Updates per head, alone", MASK: "Heads switched off"}

PAYS, LEANS_YES, EVEN, LEANS_NO, FAILS, OPEN = "pays", "leans yes", "even", "leans no", "does not pay", "no control"


@dataclass(frozen=True)
class Difference:
    """One pair.

    Attributes:
        column: the task.
        repeat: seed and draw of both runs.
        value: accuracy of the head-wise run minus that of the other, percentage points.
    """

    column: str
    repeat: tuple[int, int]
    value: float


@dataclass(frozen=True)
class Comparison:
    """All pairs of one row of a table with one kind of other run."""

    kind: str
    row: str
    against: str
    pairs: tuple[Difference, ...]

    @cached_property
    def sum(self) -> Contrast:
        """What the pairs say together."""
        tasks: dict[str, list[float]] = {}
        for found in self.pairs:
            tasks.setdefault(found.column, []).append(found.value)
        return contrast(tasks)

    @property
    def mean(self) -> float:
        """Mean over the tasks of the means over their seeds, percentage points."""
        return self.sum.mean

    @property
    def num_repeats(self) -> int:
        """Number of seeds; of few-shot sets, of seeds and draws."""
        return len({found.repeat for found in self.pairs})

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Bootstrap interval of the mean; none of too few pairs."""
        return self.sum.low, self.sum.high

    @property
    def is_clear(self) -> bool:
        """Whether there are enough pairs and the interval of their mean leaves out zero."""
        low, high = self.interval
        return low is not None and high is not None and (low > 0 or high < 0)


def verdict(row: Sequence[Comparison], is_complete: bool = True) -> str:
    """Whether one row's gain stands: it must beat every control, on enough pairs.

    Args:
        row: the comparisons of one row, of one kind.
        is_complete: whether every run of the row has every control.
    Returns:
        ``pays`` or ``does not pay`` where the pairs are clear; ``leans yes``, ``leans no`` or ``even`` where they are
        too few or divided; ``no control`` where one is missing and none of the others is lost to.
    """
    against = [comparison for comparison in row if comparison.against in CONTROLS[comparison.kind]]
    if any(comparison.mean < 0 and comparison.is_clear for comparison in against):
        return FAILS
    if any(comparison.mean < 0 for comparison in against):
        return LEANS_NO
    if not is_complete or not against:
        return OPEN
    if any(comparison.mean == 0 for comparison in against):
        return EVEN
    return PAYS if all(comparison.is_clear for comparison in against) else LEANS_YES


def comparisons(found: Iterable[Match], where: Places) -> list[Comparison]:
    """Gather what matched runs say of each row; rows that are controls themselves are left out.

    Args:
        found: of one table.
        where: rows and columns of its results.
    Returns:
        By claim, then by row; within a row in the order of `KINDS`.
    """
    gathered: dict[tuple[str, str, str], list[Difference]] = {}
    for match in found:
        if not is_size_control(match.result.tested):
            row, column = where[match.result.key]
            difference = Difference(column, match.result.repeat, match.value)
            gathered.setdefault((match.claim, row, match.against), []).append(difference)
    made = [
        Comparison(*key, tuple(sorted(pairs, key=lambda p: (p.column, p.repeat)))) for key, pairs in gathered.items()
    ]
    claims, kinds = list(CONTROLS), list(KINDS)
    return sorted(made, key=lambda c: (claims.index(c.kind), c.row, kinds.index(c.against)))


def by_row(found: Iterable[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """Group comparisons by kind and row, in their order."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in found:
        groups.setdefault((comparison.kind, comparison.row), []).append(comparison)
    return groups


def is_headwise(result: Result) -> bool:
    """Whether heads have updates of their own, or some are off."""
    last = result.phases[-1]
    per_head = str(last.method.get("_target_", "")).rpartition(".")[2].startswith("Head")
    return per_head or last.is_masked or (len(result.tested) > 1 and not is_size_control(result.tested))
