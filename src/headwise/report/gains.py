"""Did head-wise adaptation pay? Matched runs, subtracted pair by pair. Never imports torch.

A pair is two runs of one task and one seed that differ in one thing: the second phase, or the heads that are off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headwise.results.records import PhaseResult, Result
from headwise.tables.comparable import Places, repeat, tested
from headwise.tables.controls import CONTROLS as PHASE_CONTROLS
from headwise.tables.controls import EQUAL_SIZE, is_size_control, matches
from headwise.tables.paired import Contrast, contrast
from headwise.tables.twins import ground

PHASE, HEADS, MASK = "phase", "heads", "mask"
QUESTIONS = {PHASE: "A second, head-wise phase", HEADS: "Updates per head, alone", MASK: "Heads switched off"}
CONTROLS = {PHASE: tuple(PHASE_CONTROLS), HEADS: (EQUAL_SIZE,), MASK: ("no head off", "random heads off")}
"""What a gain must be shown against before it counts."""
MASKS = {"random": "random heads off", "front": "first heads off"}
"""Modes of a gate that need no score: controls of those that do."""

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


def comparisons(results: Sequence[Result], where: Places, every: Sequence[Result]) -> list[Comparison]:
    """Compare two-phase runs with their controls, and runs with heads off with the same run without.

    Args:
        results: of one table.
        where: their rows and columns.
        every: controls of two-phase runs are sought here.
    Returns:
        By kind, then by row; within a row in the order P1, longer P1, equal-size LoRA, longer P2, and for masks no
        head off, random heads off, first heads off.
    """
    found: dict[tuple[str, str, str], list[Difference]] = {}
    controls = {where[result.key][0] for result in results if is_size_control(tested(result))}
    for match in matches(results, every):
        row, column = where[match.result.key]
        if row not in controls:
            kind = HEADS if match.phase == "P1" else PHASE
            difference = Difference(column, repeat(match.result), match.value)
            found.setdefault((kind, row, match.against), []).append(difference)
    for key, difference in _masked(results, where):
        found.setdefault(key, []).append(difference)
    order = ("P1", *CONTROLS[PHASE], *CONTROLS[MASK], *MASKS.values())
    places, kinds = ({name: place for place, name in reversed(list(enumerate(names)))} for names in (order, QUESTIONS))
    made = [Comparison(*key, tuple(sorted(pairs, key=lambda p: (p.column, p.repeat)))) for key, pairs in found.items()]
    return sorted(made, key=lambda c: (kinds[c.kind], c.row, places.get(c.against, len(order)), c.against))


def by_row(found: Iterable[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """Group comparisons by kind and row, in their order."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in found:
        groups.setdefault((comparison.kind, comparison.row), []).append(comparison)
    return groups


def missing(
    results: Sequence[Result], where: Places, found: Sequence[Comparison]
) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Return, of each kind and row that needs controls, the tasks on which a run lacks one.

    Per-head updates alone are asked about where there is something to compare them with.

    Args:
        results: of one table.
        where: their rows and columns.
        found: their comparisons.
    """
    wanted: dict[tuple[str, str], set[tuple[str, tuple[int, int]]]] = {}
    for result in results:
        row, column = where[result.key]
        if len(tested(result)) > 1 and not is_size_control(tested(result)):
            wanted.setdefault((PHASE, row), set()).add((column, repeat(result)))
        last = result.phases[-1]
        if last.accuracy is not None and is_masked(last) and gate_of(last).get("mode") not in MASKS:
            wanted.setdefault((MASK, row), set()).add((column, repeat(result)))
    have = {(c.kind, c.row, c.against): {(p.column, p.repeat) for p in c.pairs} for c in found}
    wanted |= {(kind, row): pairs for (kind, row, _), pairs in have.items() if kind == HEADS}
    order = list(QUESTIONS)
    return {
        (kind, row): {
            control: sorted({column for column, _ in runs - have.get((kind, row, control), set())})
            for control in CONTROLS[kind]
        }
        for (kind, row), runs in sorted(wanted.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    }


def _masked(results: Sequence[Result], where: Places) -> list[tuple[tuple[str, str, str], Difference]]:
    """Pairs of scored masks with the same run under no mask, a random one and the first heads'."""
    plain: dict[str, float] = {}
    controls: dict[tuple[str, str, str], float] = {}
    for result in results:
        last = result.phases[-1]
        if last.accuracy is None:
            continue
        mode = gate_of(last).get("mode")
        if not is_masked(last):
            plain.setdefault(ground(result), last.accuracy)
        elif mode in MASKS:
            controls.setdefault((ground(result), _amount(last), MASKS[mode]), last.accuracy)
    lines = []
    for result in results:
        last = result.phases[-1]
        if last.accuracy is None or not is_masked(last) or gate_of(last).get("mode") in MASKS:
            continue
        row, column = where[result.key]
        others = {"no head off": plain.get(ground(result))}
        others |= {name: controls.get((ground(result), _amount(last), name)) for name in MASKS.values()}
        for name, other in others.items():
            if other is not None:
                lines.append(((MASK, row, name), Difference(column, repeat(result), last.accuracy - other)))
    return lines


def is_headwise(result: Result) -> bool:
    """Whether heads have updates of their own, or some are off."""
    last = result.phases[-1]
    per_head = str(last.method.get("_target_", "")).rpartition(".")[2].startswith("Head")
    return per_head or is_masked(last) or (len(tested(result)) > 1 and not is_size_control(tested(result)))


def gate_of(phase: PhaseResult) -> Mapping[str, Any]:
    """The fields of a phase's gate; empty without one."""
    gate = phase.extra.get("gate")
    return gate if isinstance(gate, Mapping) else {}


def masks(phase: PhaseResult) -> list[Mapping[str, Any]]:
    """Records of the projections of a gated phase (stage, block, proj, active, score); none without a gate.

    Raises:
        ValueError: if they are not what a gate leaves behind.
    """
    rows = phase.extra.get("heads") if gate_of(phase) else None
    for row in rows or []:
        scores = row["score"]
        if not row["active"] or not (scores is None or len(scores) == len(row["active"])):
            raise ValueError(f"{row['proj']} of block {row['block']}: {scores!r} for {row['active']!r}")
    return list(rows or [])


def is_masked(phase: PhaseResult) -> bool:
    """Whether a gate has switched heads off."""
    return any(0 in row["active"] for row in masks(phase))


def heads_off(phase: PhaseResult) -> float:
    """Heads that are off, per layer and projection; 0 without a gate."""
    rows = masks(phase)
    return sum(row["active"].count(0) for row in rows) / len(rows) if rows else 0.0


def _amount(phase: PhaseResult) -> str:
    return str([(row["proj"], row["active"].count(0)) for row in masks(phase)])
