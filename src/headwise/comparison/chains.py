"""Runs that go on from others (``from=RUN_DIR``): what they are measured by, and how such a run is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.comparison.recipes import class_of
from headwise.results.records import FROM, PhaseResult, Result


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


def ways_of(result: Result, names: Sequence[str]) -> dict[str, str]:
    """How the controls of a chain are made, by their names; nothing of other runs.

    Args:
        names: of the controls: the first method for longer, one of equal size, the last method for longer.
    """
    if not is_chain(result):
        return {}
    phases = result.tested
    size = {names[1]: "method=matched_lora with the same from"}
    if len(phases) < 2:
        return size
    alone = "method={} protocol.epochs={} without from"
    first, last = (alone.format(phase.label, result.epochs) for phase in (phases[0], phases[-1]))
    return {names[0]: first, **size, names[2]: last}
