"""Which runs a head-wise run must be measured by, and what it gains over them. Standard library only.

Phase 2 of HS-LoRA brings parameters, training time, and updates of single heads; Heart-LoRA switches heads off by a
score. Only runs that differ in one of these tell what the heads, or the scores, are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from headwise.comparison.chains import is_measured_by_size, start_of, trained, ways_of
from headwise.comparison.comparable import Places, recorded
from headwise.comparison.recipes import (
    class_of,
    is_matched,
    joint_twin,
    permuted_twin,
    recipe,
    scaled_twin,
    shared_twin,
    without,
)
from headwise.results.fingerprint import few, fingerprint
from headwise.results.records import PhaseResult, Result, RunKey
from headwise.schema.kinds import SAME_SIZE

EQUAL_SIZE = "equal-size LoRA"
PERMUTED, SCALED, JOINT, ORDER = "random rows", "equal steps", "joint", "other order"
RESTARTED = "longer P1, restarted"
TWINS = {EQUAL_SIZE: shared_twin, PERMUTED: permuted_twin, SCALED: scaled_twin}
NO_MASK = "no head off"
MASKS = {"random": "random heads off", "front": "first heads off"}
"""Modes of a gate that need no score: what runs with scored heads off are measured by."""


@dataclass(frozen=True)
class Kind:
    """A kind of run that head-wise ones are measured by.

    Attributes:
        full: what it is, for a caption.
        short: the same where there is little room.
        open: what a run that lacks it leaves open; empty of one that no claim needs.
        is_alone: whether it shares no phase with the run that it measures, but its protocol.
    """

    full: str
    short: str
    open: str = ""
    is_alone: bool = False


KINDS = {
    "P1": Kind("its own first phase", "its own first phase"),
    "longer P1": Kind(
        "the first method alone, trained for the epochs of both phases",
        "the first method, trained as long",
        "its gain over P1 proves little",
        is_alone=True,
    ),
    RESTARTED: Kind(
        "the first method alone, for the epochs of both phases, its schedule and optimiser started anew for the second",
        "the first method, its schedule run twice",
        is_alone=True,
    ),
    EQUAL_SIZE: Kind(
        "plain LoRA of equal size, after the same first phase if there is one",
        "LoRA of equal size instead",
        "its gain over P1 proves little",
    ),
    "longer P2": Kind(
        "the second method alone, trained for the epochs of both phases",
        "the second method alone, trained as long",
        "its gain over P1 proves little",
        is_alone=True,
    ),
    PERMUTED: Kind(
        "updates of as many groups of random rows, after the same first phase if there is one",
        "groups of random rows instead of heads",
    ),
    SCALED: Kind(
        "the same heads, scaled to the steps of plain LoRA of equal size, after the same first phase if there is one",
        "the same heads, of larger scale",
    ),
    JOINT: Kind(
        "both updates trained together, in one phase of the epochs of both",
        "both updates together, trained as long",
        is_alone=True,
    ),
    ORDER: Kind("the same two phases in the other order", "its phases in the other order", is_alone=True),
    NO_MASK: Kind(
        "the same run with no head off",
        "the same run, no head off",
        "nothing says what switching heads off costs",
    ),
    MASKS["random"]: Kind(
        "the same run with as many random heads off",
        "as many random heads off",
        "nothing says that the scores matter",
    ),
    MASKS["front"]: Kind("the same run with as many of the first heads off", "as many first heads off"),
}
"""What a second phase, per-head updates alone, or heads switched off are compared with, in the order of tables."""
PHASE, HEADS, MASK = "phase", "heads", "mask"
CONTROLS = {
    PHASE: {
        "longer P1": "method=hs_control_long",
        EQUAL_SIZE: "method=hs_control_lora",
        "longer P2": "method=hs_control_head",
    },
    HEADS: {EQUAL_SIZE: "method=matched_lora"},
    MASK: {NO_MASK: "the same with ne=ne0", MASKS["random"]: "the same with mode=random in its gate"},
}
"""Of each claim, the kinds of run that it must beat, and how such a run is made."""
Claims = Mapping[tuple[str, str], Mapping[str, Sequence[str]]]
"""Of each claim and row, by the controls it needs, the tasks on which a run lacks one."""


@dataclass(frozen=True)
class Match:
    """A head-wise run and another that it is measured by.

    Attributes:
        result: the head-wise run.
        phase: its last tested one, ``P2``.
        against: one of `KINDS`.
        reached: accuracy of the other, percent.
        other: key of the other; for ``P1`` the run's own.
        size: by which share the control of equal size has more parameters than what it stands against; 0 of others.
    """

    result: Result
    phase: str
    against: str
    reached: float
    other: RunKey
    size: float = 0.0

    @property
    def accuracy(self) -> float:
        """Of the head-wise run after its last phase, percent."""
        return float(self.result.tested[-1].accuracy or 0.0)

    @property
    def value(self) -> float:
        """Its accuracy minus the other's, percentage points."""
        return self.accuracy - self.reached

    @property
    def size_note(self) -> str:
        """How much larger or smaller a control of equal size is; empty within `SAME_SIZE`."""
        return f"{100 * self.size:+.1f} % parameters" if abs(self.size) > SAME_SIZE else ""

    @property
    def start_note(self) -> str:
        """In what a chain's first phases were trained otherwise than a control without them; empty of others."""
        return few(self.result.otherwise, 3) if KINDS[self.against].is_alone else ""

    @property
    def claim(self) -> str:
        """What the comparison speaks of: `PHASE`, `HEADS` or `MASK`."""
        return claim_of(self.phase, self.against)


def claim_of(phase: str, against: str) -> str:
    """The claim that a comparison of this phase with this kind of run speaks of."""
    if against in (NO_MASK, *MASKS.values()):
        return MASK
    return HEADS if phase == "P1" else PHASE


def controls_of(result: Result) -> dict[str, dict[str, str]]:
    """What a run claims, and of each claim the controls that it needs; see `CONTROLS`.

    Per-head updates of which some are off have no plain LoRA of their size: they are measured by the run with none off,
    and that one by plain LoRA. Heads that are off by a budget for the whole network have no random twin.
    """
    phases, last = result.tested, result.phases[-1]
    claims = {}
    if len(phases) > 1 and not is_control(phases):
        has_twin = not last.is_masked and is_measured_by_size(result)
        claims[PHASE] = {kind: how for kind, how in CONTROLS[PHASE].items() if kind != EQUAL_SIZE or has_twin}
    if is_per_head(result) and not last.is_masked:
        claims[HEADS] = CONTROLS[HEADS]
    if last.accuracy is not None and last.is_masked and last.gate.get("mode") not in MASKS:
        is_budget = last.gate.get("budget") is not None
        claims[MASK] = {kind: how for kind, how in CONTROLS[MASK].items() if kind == NO_MASK or not is_budget}
    ways = ways_of(result, list(CONTROLS[PHASE]))
    return {claim: {kind: ways.get(kind, how) for kind, how in kinds.items()} for claim, kinds in claims.items()}


def matches(results: Sequence[Result], every: Iterable[Result]) -> list[Match]:
    """Return the differences of head-wise runs to their controls.

    A two-phase run is compared with its own Phase 1; with one-phase runs of the same task, seed, weights, images and
    protocol whose epochs are those of both phases together: each of its methods alone, the first with its schedule run
    twice, and both updates trained together; with the other order; and, after the very same Phase 1, with plain LoRA of
    as many parameters, groups of random rows, and heads whose steps are equal to plain LoRA's.
    A one-phase run of per-head updates is compared with the last three, trained for as many epochs.
    A run with heads off by score is compared with the same with none off, and with as many random or first ones off.
    """
    asked = [(result, controls_of(result)) for result in results]
    # two phases that claim nothing (Phase 1, then plain LoRA) still show what they gain over their own first phase
    asked = [(result, claims) for result, claims in asked if claims or len(result.tested) > 1]
    wanted = {result.key.dataset for result, _ in asked}
    masked = {result.key.dataset for result, claims in asked if MASK in claims}
    there = _Controls(every, wanted, masked)
    matched = []
    for result, claims in asked:
        phases = result.tested
        first, last = phases[0], phases[-1]
        for kind, other in there.of(result, claims).items():
            if other is not None:
                reached = first if kind == "P1" else other.tested[-1]
                size = reached.num_tunable / last.num_tunable - 1 if kind == EQUAL_SIZE and last.num_tunable else 0.0
                matched.append(Match(result, f"P{len(phases)}", kind, float(reached.accuracy or 0.0), other.key, size))
    return matched


class _Controls:
    """Runs that others are measured by, found by what they share with those.

    Args:
        wanted: tasks that are asked about.
        masked: those of them on which a mask has to be judged.
    """

    def __init__(self, every: Iterable[Result], wanted: Set[str], masked: Set[str]) -> None:
        self.alone: dict[str, Result] = {}
        self.after: dict[tuple[str, int, str], Result] = {}
        self.orders: dict[str, Result] = {}
        self.twins: dict[tuple[str, str, str], Result] = {}
        for result in every:
            phases = result.tested
            if result.key.dataset not in wanted or not phases:
                continue
            if len(phases) == 1:
                _keep(self.alone, _matched(result, phases[0].asked), result)
            elif is_control(phases):
                # the very Phase 1 and not one trained alike: what follows starts from the same weights
                _keep(self.after, _second(result, phases[-1].asked), result)
                _keep(self.orders, _matched(result, *map(trained, phases)), result)
            # `ground` hashes a run's whole identity: it is asked for only where a mask has to be judged
            if result.key.dataset in masked and (kind := _mask_kind(result.phases[-1])) is not None:
                self.twins.setdefault((ground(result), kind, _amount(result.phases[-1], kind)), result)

    def of(self, result: Result, claims: Mapping[str, Mapping[str, str]]) -> dict[str, Result | None]:
        """By kind, what a run that claims this is measured by; None where there is no such run."""
        phases = result.tested
        first, last = trained(phases[0]), phases[-1]
        others: dict[str, Result | None] = {}
        if len(phases) > 1:
            others = {"P1": result, "longer P1": self.alone.get(_matched(result, first))}
            if PHASE in claims:
                others[RESTARTED] = self.alone.get(_matched(result, {**first, "cycles": len(phases)}))
                others["longer P2"] = self.alone.get(_matched(result, last.asked))
        # made from the run's own recipe, so that the control differs in nothing but whose the parameters are
        if EQUAL_SIZE in claims.get(PHASE, {}):
            others |= {kind: self.after.get(_second(result, twin(last.asked))) for kind, twin in TWINS.items()}
            if len(phases) == 2:  # of three, these would lack the one between
                others[JOINT] = self.alone.get(_matched(result, joint_twin(first, last.asked)))
                others[ORDER] = self.orders.get(_matched(result, last.asked, first))
        if HEADS in claims:
            others |= {kind: self.alone.get(_matched(result, twin(last.asked))) for kind, twin in TWINS.items()}
        if MASK in claims:
            for kind in (NO_MASK, *MASKS.values()):
                others[kind] = self.twins.get((ground(result), kind, _amount(last, kind)))
        return others


def unequal(matched: Iterable[Match], where: Places) -> list[str]:
    """Say by how much the controls of equal size are not of equal size."""
    parts = _by_note([(match, match.size_note) for match in matched], where)
    return [f"NOT OF EQUAL SIZE, the control called so has, of {'; of '.join(parts)}."] if parts else []


def unlike(matched: Iterable[Match], where: Places) -> list[str]:
    """Say which rows went on from phases that were trained otherwise than their controls."""
    parts = _by_note([(match, match.start_note) for match in matched], where)
    return [f"TRAINED OTHERWISE, before it went on and by the controls: {'; '.join(parts)}."] if parts else []


def _by_note(noted: Iterable[tuple[Match, str]], where: Places) -> list[str]:
    """Rows with what is to be said of them, and the tasks where it is."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for match, note in noted:
        if note:
            row, column = where[match.result.key]
            rows.setdefault((row, note), {})[column] = None
    return [f"{row} {note} ({', '.join(columns)})" for (row, note), columns in sorted(rows.items())]


def unmasked(results: Iterable[Result], every: Iterable[Result]) -> list[tuple[Result, Result]]:
    """Return runs with heads off, by score or not, each with the same run with none off, where there is one."""
    plain: dict[str, Result] = {}
    for result in every:
        if result.tested and not result.phases[-1].is_masked:
            plain.setdefault(ground(result), result)
    masked = [result for result in results if result.phases[-1].is_masked and result.accuracy is not None]
    return [(result, plain[place]) for result in masked if (place := ground(result)) in plain]


def lacking(results: Sequence[Result], where: Places, matched: Iterable[Match]) -> Claims:
    """Return what the rows of a table claim, and the controls they lack.

    Per-head updates alone are asked about where there is something to compare them with.
    """
    have = {(match.claim, match.against, match.result.key) for match in matched}
    missing: dict[tuple[str, str], dict[str, set[str]]] = {}
    for result in results:
        row, column = where[result.key]
        for claim, controls in controls_of(result).items():
            if claim != HEADS or (HEADS, EQUAL_SIZE, result.key) in have:
                kinds = missing.setdefault((claim, row), {})
                for kind in controls:
                    # a control that every run has is entered too, without a task: the claim must be judged all the same
                    kinds.setdefault(kind, set()).update([] if (claim, kind, result.key) in have else [column])
    order = list(CONTROLS)
    return {
        key: {kind: sorted(columns) for kind, columns in missing[key].items()}
        for key in sorted(missing, key=lambda key: (order.index(key[0]), key[1]))
    }


def ground(result: Result, apart: Sequence[str] = ()) -> str:
    """Hash of what a run with heads off and its twins share: its identity, without the gates and the parts `apart`."""
    methods = [without(phase.asked, "gate") for phase in result.phases]
    return fingerprint({"methods": methods, "rest": without(result.identity, "method", *apart)})


def _mask_kind(phase: PhaseResult) -> str | None:
    """As which control of heads off by score a phase can serve."""
    return MASKS.get(str(phase.gate.get("mode"))) if phase.is_masked else NO_MASK


def _amount(phase: PhaseResult, kind: str) -> str:
    """How many heads are off where; a run with none off is measured by whatever the number, chosen ones are one."""
    if kind != NO_MASK and "ne" in phase.searched:
        return "searched"
    # layer by layer: as many heads off in sum, but in other layers, would be another mask
    return "" if kind == NO_MASK else str([(row["proj"], row["active"].count(0)) for row in phase.masks])


def is_control(phases: Sequence[PhaseResult]) -> bool:
    """Whether a run of several phases is there to measure others by and claims nothing itself.

    Its last phase is plain LoRA of the size that per-head updates would have, or has groups of random rows or another
    scale; or the first of two has the per-head updates.
    """
    kinds = [class_of(phase.method) for phase in phases]
    is_twin = len(kinds) > 1 and kinds[-1] in ("MatchedLoRA", "PermutedLoRA", "ScaledHeadLoRA")
    return is_twin or (len(kinds) == 2 and kinds[0] == "HeadLoRA" and kinds[1] != "HeadLoRA")


def is_per_head(result: Result) -> bool:
    """Whether a run is one tested phase of per-head updates."""
    phases = result.tested
    return len(phases) == 1 and class_of(phases[0].method) == "HeadLoRA"


def _keep(kept: dict[Any, Result], place: Any, result: Result) -> None:
    """Keep the first result of a place; of controls of equal size the one of the newest revision."""

    def revision(result: Result) -> int:
        spec = result.tested[-1].method
        return int(spec.get("revision") or 1) if is_matched(spec) else 0

    if place not in kept or revision(result) > revision(kept[place]):
        kept[place] = result


def _second(result: Result, method: Mapping[str, Any]) -> tuple[str, int, str]:
    """What a run and a control share that has the very same Phase 1, and this method after it by the same search."""
    protocol = recorded(result, "protocol")
    search = protocol.get("search") if isinstance(protocol, Mapping) else None
    return result.tested[-2].fingerprint, result.epochs, fingerprint({"recipe": recipe(method), "search": search})


def _matched(result: Result, *methods: Mapping[str, Any]) -> str:
    """Hash of what a run and a control of these phases share; the epochs are those of all phases together."""
    protocol = recorded(result, "protocol")
    if isinstance(protocol, Mapping):
        # these are the epochs of one phase; what has to agree is their sum over the phases, below
        protocol = without(protocol, "epochs")
    specs = [recipe(method) for method in methods]
    return fingerprint(
        {
            "dataset": result.key.dataset,
            "seed": result.key.seed,
            "weights": recorded(result, "weights"),
            "data": recorded(result, "data"),
            "protocol": protocol,
            # without a recorded method nothing matches
            "method": specs if all(specs) else result.fingerprint,
            "epochs": result.epochs,
            "start": start_of(result),
        }
    )
