"""Runs that go on from others (``from=RUN_DIR``): what they are measured by, and how such a run is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headwise.comparison.comparable import Places
from headwise.comparison.recipes import class_of
from headwise.results.records import PhaseResult, Result

FROM = "from"
"""Key of the identity under which a run keeps what it went on from, as a hash."""
Ways = Mapping[tuple[str, str], Mapping[str, str]]
"""By claim and row, how controls of chains are made."""


def is_chain(result: Result) -> bool:
    """Whether a run went on from another."""
    return result.identity.get(FROM) is not None


def start_of(result: Result) -> Any:
    """What a run stands on whose phases before the tested one are of another task; None for one that stands alone."""
    return result.identity.get(FROM) if len(result.tested) == 1 else None


def trained(phase: PhaseResult) -> dict[str, Any]:
    """What was asked for of a phase; not the file that a chain took it from, where it was trained by this recipe."""
    return {**phase.asked, "checkpoint": None} if phase.epochs and phase.asked.get("checkpoint") else phase.asked


def is_measured_by_size(result: Result) -> bool:
    """Whether plain LoRA of the size of a run's last phase is its control: of chains, where that is per head."""
    return not is_chain(result) or class_of(result.tested[-1].method) == "HeadLoRA"


def ways_of(results: Iterable[Result], where: Places, names: Sequence[str], claims: tuple[str, str]) -> dict[Any, Any]:
    """How the controls of chains are made, by claim and row; nothing of other runs.

    Args:
        results: of one table.
        where: their rows and columns.
        names: of the controls: the first method for longer, one of equal size, the last method for longer.
        claims: of a second phase, and of per-head updates alone.
    """
    ways: dict[tuple[str, str], dict[str, str]] = {}
    for result in filter(is_chain, results):
        row, phases = where[result.key][0], result.tested
        size = {names[1]: "method=matched_lora with the same from"}
        if len(phases) == 1:
            ways[claims[1], row] = size
            continue
        alone = "method={} protocol.epochs={} without from"
        first, last = (alone.format(phase.label, result.epochs) for phase in (phases[0], phases[-1]))
        ways[claims[0], row] = {names[0]: first, **size, names[2]: last}
    return ways
