"""Did head-wise adaptation pay? One rule, one scale of verdicts and its words for tables, report and a run's ending.

A pair is two runs of one task and one seed that differ in one thing: the second phase, the updates per head, or the
heads that are off. A claim of a row stands on the pairs with each of its controls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import MappingProxyType

from headwise.comparison.comparable import Places, recorded
from headwise.comparison.contrast import Contrast, contrast
from headwise.comparison.controls import CONTROLS, HEADS, KINDS, MASK, PHASE, Claims, Match, is_control
from headwise.comparison.recipes import class_of
from headwise.protocol.recipe import MEANINGLESS
from headwise.results.records import Result

QUESTIONS = {PHASE: "A second, head-wise phase", HEADS: "Updates per head, alone", MASK: "Heads switched off"}
"""What the report asks of all rows together."""
ASKED = {
    PHASE: "Is the second phase of {} better than its controls",
    HEADS: "Are the per-head updates of {} better than shared ones of their size",
    MASK: "Is switching heads off in {} better than its controls",
}
"""What a table and a run's ending ask of one row."""
Ways = Mapping[tuple[str, str], Mapping[str, str]]
"""By claim and row, how controls are made."""
FEW = 3
"""Tasks that a note names; of more it says how many."""


class Verdict(Enum):
    """Whether a claim stands, from best to worst; the last two are no place on that scale but the want of one."""

    YES = "yes"
    """The mean beats every control, on enough pairs, and every interval leaves out zero."""
    LEANS_YES = "leans yes"
    """The mean beats every control, on too few or too divided pairs to be sure."""
    EVEN = "no difference"
    """The mean loses to no control, and equals one."""
    LEANS_NO = "leans no"
    """The mean loses to a control, on too few or too divided pairs to be sure."""
    NO = "no"
    """The mean loses to a control, and the interval leaves out zero."""
    NO_CONTROL = "no control"
    """A run lacks a control, and none of those that are there is lost to."""
    SMOKE = "SMOKE"
    """A run or a control is stamped as one whose numbers mean nothing, whatever they are."""

    @property
    def rank(self) -> int:
        """Place on the scale, 0 is best."""
        return list(Verdict).index(self)

    @property
    def headline(self) -> str:
        """What it says of all rows that share it."""
        return _HEADLINES[self]


_HEADLINES = {
    Verdict.YES: "Yes, on these runs.",
    Verdict.LEANS_YES: "It leans yes, on too few or too divided pairs to be sure.",
    Verdict.EVEN: "No difference shows.",
    Verdict.LEANS_NO: "Not so far: it does not beat all of its controls.",
    Verdict.NO: "No, not on these runs.",
    Verdict.NO_CONTROL: "It cannot be said: a control is missing.",
    Verdict.SMOKE: "SMOKE: these runs show that everything works. Their numbers mean nothing.",
}


@dataclass(frozen=True)
class Difference:
    """One pair.

    Attributes:
        value: accuracy of the head-wise run minus that of the other, percentage points.
    """

    column: str
    repeat: tuple[int, int]
    value: float


@dataclass(frozen=True)
class Pairs:
    """All pairs of one row of a table with one kind of other run."""

    against: str
    differences: tuple[Difference, ...]

    @cached_property
    def sum(self) -> Contrast:
        """What the pairs say together."""
        tasks: dict[str, list[float]] = {}
        for difference in self.differences:
            tasks.setdefault(difference.column, []).append(difference.value)
        return contrast(tasks)

    @property
    def mean(self) -> float:
        """Mean over the tasks of the means over their seeds, percentage points."""
        return self.sum.mean

    @property
    def num_repeats(self) -> int:
        """Number of seeds; of few-shot sets, of seeds and draws."""
        return len({difference.repeat for difference in self.differences})

    @property
    def is_clear(self) -> bool:
        """Whether there are enough pairs and the interval of their mean leaves out zero."""
        low, high = self.sum.low, self.sum.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def __str__(self) -> str:
        total = self.sum
        interval = "" if total.low is None else f"{total.low:+.2f} to {total.high:+.2f}, "
        return f"{total.mean:+.2f} against {self.against} ({interval}{total.pairs} pair{'s' * (total.pairs != 1)})"


@dataclass(frozen=True)
class Judgement:
    """What is claimed of one row, and what its pairs say.

    Attributes:
        claim: `PHASE`, `HEADS` or `MASK`.
        pairs: with each kind of other run, in the order of `KINDS`.
        lacking: of each control that the claim needs, the tasks on which a run lacks it.
        is_smoke: whether a run of the row is stamped as one whose numbers mean nothing.
    """

    claim: str
    row: str
    pairs: tuple[Pairs, ...]
    lacking: dict[str, Sequence[str]]
    is_smoke: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every run of the row has every control."""
        return not any(self.lacking.values())

    @cached_property
    def verdict(self) -> Verdict:
        """The rule: the row must beat every control, on enough pairs, with numbers that mean something."""
        if self.is_smoke:
            return Verdict.SMOKE
        against = [pairs for pairs in self.pairs if pairs.against in CONTROLS[self.claim]]
        lost = [pairs for pairs in against if pairs.mean < 0]
        if lost:  # one control that is better is enough, whatever else is missing
            return Verdict.NO if any(pairs.is_clear for pairs in lost) else Verdict.LEANS_NO
        # the control that is missing might be the one that wins: nothing can be claimed without it
        if not self.is_complete or not against:
            return Verdict.NO_CONTROL
        if any(pairs.mean == 0 for pairs in against):
            return Verdict.EVEN
        return Verdict.YES if all(pairs.is_clear for pairs in against) else Verdict.LEANS_YES

    def __str__(self) -> str:
        """The question, the verdict and what says so, as one sentence."""
        sentences = {pairs.against: str(pairs) for pairs in self.pairs}
        parts = [sentences.get(kind, f"none against {kind}") for kind in self.lacking]
        asked, said = ASKED[self.claim].format(self.row), self.verdict.value
        if self.is_smoke:
            return f"{asked}? {said}, the numbers mean nothing: {', '.join(parts)}."
        return f"{asked}? {said.capitalize()}: {', '.join(parts)}."


def is_smoke(result: Result) -> bool:
    """Whether a label, or in records of older code the protocol's name, says that a run's numbers mean nothing."""
    protocol = recorded(result, "protocol")
    name = protocol.get("name") if isinstance(protocol, Mapping) else None
    return any(mark in MEANINGLESS for mark in (*result.labels, name))


def judged(matches: Iterable[Match], where: Places, claims: Claims, results: Iterable[Result]) -> list[Judgement]:
    """Judge every claim of a table's rows, in the order of `claims`."""
    gathered: dict[tuple[str, str], dict[str, list[Difference]]] = {}
    for match in matches:
        row, column = where[match.result.key]
        kinds = gathered.setdefault((match.claim, row), {})
        kinds.setdefault(match.against, []).append(Difference(column, match.result.repeat, match.value))
    smoke = {where[result.key][0] for result in results if is_smoke(result)}
    return [
        Judgement(claim, row, _in_order(gathered.get((claim, row), {})), dict(lack), row in smoke)
        for (claim, row), lack in claims.items()
    ]


def _in_order(kinds: dict[str, list[Difference]]) -> tuple[Pairs, ...]:
    order = list(KINDS)
    return tuple(
        Pairs(kind, tuple(sorted(kinds[kind], key=lambda difference: (difference.column, difference.repeat))))
        for kind in sorted(kinds, key=order.index)
    )


def uncontrolled(claims: Claims, ways: Ways = MappingProxyType({})) -> list[str]:
    """Say which rows lack a control, what that leaves open, and how to make it: by `ways`, of other rows as usual."""
    notes = []
    for claim, kinds in CONTROLS.items():
        for kind, how in kinds.items():
            lack = {row: of[kind] for (asked, row), of in claims.items() if asked == claim and of.get(kind)}
            own = {row: ways.get((claim, row), {}).get(kind, how) for row in lack}
            for way in dict.fromkeys(own.values()):
                rows = "; ".join(f"{row} on {_named(columns)}" for row, columns in lack.items() if own[row] == way)
                notes.append(f"NO CONTROL ({kind}) for {rows}: {KINDS[kind].open}; run {way} as well.")
    return notes


def _named(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= FEW else f"{len(tasks)} tasks"


def is_headwise(result: Result) -> bool:
    """Whether heads have updates of their own, or some are off."""
    last = result.phases[-1]
    # by the name of the class: the class itself is made of torch, which this room never imports
    per_head = class_of(last.method).startswith("Head")
    return per_head or last.is_masked or (len(result.tested) > 1 and not is_control(result.tested))
