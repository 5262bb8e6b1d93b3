"""Which runs a head-wise run must be measured by, and what it gains over them. Standard library only.

Phase 2 of HS-LoRA brings parameters, training time, and updates of single heads; only runs that differ in one of these
tell what the heads are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult, Result
from headwise.tables.comparable import epochs, recorded, tested

EQUAL_SIZE = "equal-size LoRA"
CONTROLS = {"longer P1": "hs_control_long", EQUAL_SIZE: "hs_control_lora", "longer P2": "hs_control_head"}
"""Kinds of control of a two-phase run, and the configuration that makes it."""
ALONE = {EQUAL_SIZE: "matched_lora"}
"""Those of per-head updates in a single phase."""
KINDS = {
    "P1": "its own first phase",
    "longer P1": "the first method alone, trained for the epochs of both phases",
    EQUAL_SIZE: "plain LoRA of equal size, after the same first phase if there is one",
    "longer P2": "the second method alone, trained for the epochs of both phases",
}
"""What a second phase, or per-head updates alone, are compared with."""


@dataclass(frozen=True)
class Match:
    """A head-wise run and another that it is measured by.

    Attributes:
        result: the head-wise run.
        phase: its last tested one, ``P2``.
        against: one of `KINDS`.
        value: its accuracy minus the other's, percentage points.
    """

    result: Result
    phase: str
    against: str
    value: float


def matches(results: Sequence[Result], every: Iterable[Result]) -> list[Match]:
    """Return the differences of head-wise runs to their controls.

    A two-phase run is compared with its own Phase 1; with each of its two methods alone (longer P1, longer P2): a
    one-phase run of the same task, seed, weights, images and protocol, whose epochs are those of both phases together;
    and with plain LoRA of as many parameters after the very same Phase 1, for as many epochs (equal-size LoRA).
    A one-phase run of per-head updates is compared with plain LoRA of as many parameters, for as many epochs.

    Args:
        results: head-wise runs are sought here.
        every: controls are sought here.
    """
    asked = [result for result in results if len(tested(result)) > 1 or is_per_head(result)]
    wanted = {result.key.dataset for result in asked}
    alone: dict[str, float] = {}
    equal_size: dict[tuple[str, int], float] = {}
    for result in every:
        phases = tested(result)
        if result.key.dataset not in wanted or not phases or (reached := phases[-1].accuracy) is None:
            continue
        if len(phases) == 1:
            alone.setdefault(_matched(result, phases[0].method), reached)
        elif is_size_control(phases):
            equal_size.setdefault((phases[0].fingerprint, epochs(result)), reached)
    made = []
    for result in asked:
        phases = tested(result)
        first, last = phases[0], phases[-1]
        if len(phases) == 1:
            others = {EQUAL_SIZE: alone.get(_matched(result, _shared_twin(last.method)))}
        else:
            others = {"P1": first.accuracy, "longer P1": alone.get(_matched(result, first.method))}
            if not is_size_control(phases):
                others[EQUAL_SIZE] = equal_size.get((first.fingerprint, epochs(result)))
                others["longer P2"] = alone.get(_matched(result, last.method))
        for name, other in others.items():
            if other is not None and last.accuracy is not None:
                made.append(Match(result, f"P{len(phases)}", name, last.accuracy - other))
    return made


def controls_of(result: Result) -> Mapping[str, str]:
    """Kinds of control that a run needs, and the configuration that makes each; empty for a run that is no claim."""
    phases = tested(result)
    if len(phases) > 1:
        return {} if is_size_control(phases) else CONTROLS
    return ALONE if is_per_head(result) else {}


def is_size_control(phases: Sequence[PhaseResult]) -> bool:
    """Whether a run is Phase 1 followed by plain LoRA of the size that per-head updates would have."""
    return len(phases) == 2 and str(phases[1].method.get("_target_", "")).endswith(".MatchedLoRA")


def is_per_head(result: Result) -> bool:
    """Whether a run is one tested phase of per-head updates."""
    phases = tested(result)
    return len(phases) == 1 and str(phases[0].method.get("_target_", "")).endswith(".HeadLoRA")


def _shared_twin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of plain LoRA that has as many parameters as these per-head updates."""
    kind = str(spec["_target_"]).replace(".HeadLoRA", ".MatchedLoRA")
    rest = {name: value for name, value in spec.items() if name != "rank"}
    return {**rest, "_target_": kind, "head_rank": spec.get("rank")}


def _matched(result: Result, method: Mapping[str, Any]) -> str:
    """Hash of what a run and a one-phase control of this method share; the epochs are those of all phases."""
    protocol = recorded(result, "protocol")
    if isinstance(protocol, Mapping):
        protocol = {name: value for name, value in protocol.items() if name != "epochs"}
    spec = {name: value for name, value in method.items() if name not in ("label", "epochs")}
    return fingerprint(
        {
            "dataset": result.key.dataset,
            "seed": result.key.seed,
            "weights": recorded(result, "weights"),
            "data": recorded(result, "data"),
            "protocol": protocol,
            "method": spec or result.fingerprint,  # without a recorded method nothing matches
            "epochs": epochs(result),
        }
    )
