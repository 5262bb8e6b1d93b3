"""The answer at the head of the report: did head-wise adaptation pay, and what says so. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup

from headwise.report import figures, gains, grids
from headwise.report.gains import Comparison
from headwise.report.grids import Grid, signed
from headwise.tables.controls import Claims

STANDS = {
    gains.PAYS: "Yes, on these runs.",
    gains.LEANS_YES: "It leans yes, on too few or too divided pairs to be sure.",
    gains.EVEN: "No difference shows.",
    gains.LEANS_NO: "Not so far: it does not beat all of its controls.",
    gains.FAILS: "No, not on these runs.",
    gains.OPEN: "It cannot be said: a control is missing.",
}
COUNTED = {
    gains.PAYS: "paying",
    gains.LEANS_YES: "leaning yes",
    gains.EVEN: "without a difference",
    gains.LEANS_NO: "leaning no",
    gains.FAILS: "not paying",
    gains.OPEN: "without a control",
}
AGAINST = {
    "P1": "its own first phase",
    "longer P1": "the first method, trained as long",
    "equal-size LoRA": "LoRA of equal size instead",
    "longer P2": "the second method alone, trained as long",
    "no head off": "the same run, no head off",
    "random heads off": "as many random heads off",
    "first heads off": "as many first heads off",
}


class Part(Protocol):
    """The results of one table."""

    @property
    def title(self) -> str:
        """Of the table."""
        ...

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """All of them."""
        ...

    @property
    def claims(self) -> Claims:
        """What its rows claim, and the controls they lack."""
        ...


@dataclass(frozen=True)
class Contrast:
    """One comparison, drawn."""

    against: str
    strip: Markup
    mean: str
    mark: str
    interval: str
    counts: str
    extent: str


@dataclass(frozen=True)
class Answer:
    """The verdict on one row."""

    row: str
    verdict: str
    contrasts: Sequence[Contrast]


@dataclass(frozen=True)
class Question:
    """What is asked of all rows of one kind, and what the pairs say."""

    text: str
    headline: str
    sentence: str
    answers: Sequence[Answer]
    ends: tuple[str, str]
    data: Grid


def questions(parts: Sequence[Part]) -> list[Question]:
    """Ask of each kind of head-wise adaptation whether it paid; what no result can answer is not asked."""
    made = []
    for kind, text in gains.QUESTIONS.items():
        groups = [
            (part, row, gains.by_row(part.comparisons).get((kind, row), []))
            for part in parts
            for group, row in part.claims
            if group == kind
        ]
        if groups:
            made.append(_question(kind, text, groups))
    return made


def _question(kind: str, text: str, groups: Sequence[tuple[Part, str, Sequence[Comparison]]]) -> Question:
    values = [abs(pair.value) for *_, found in groups for c in found for pair in c.pairs]
    largest = figures.rounded(max(values, default=1.0))
    several = len({part.title for part, *_ in groups}) > 1
    answers = []
    for part, row, found in groups:
        name = f"{part.title}: {row}" if several else row
        verdict = gains.verdict(found, not any(part.claims[kind, row].values()))
        answers.append(Answer(name, verdict, [_contrast(name, c, largest) for c in found]))
    verdicts = [answer.verdict for answer in answers]
    if len(set(verdicts)) == 1:
        headline = STANDS[verdicts[0]]
    else:
        counts = (f"{verdicts.count(v)} {COUNTED[v]}" for v in STANDS if v in verdicts)
        begin = "In part" if gains.PAYS in verdicts else "Undecided" if gains.LEANS_YES in verdicts else "Not so far"
        headline = f"{begin}. Of {len(verdicts)} rows: {', '.join(counts)}."
    lines = [
        (part.title, row, c.against, pair.column, *pair.repeat, pair.value)
        for part, row, found in groups
        for c in found
        for pair in c.pairs
    ]
    head = ["table", "method", "against", "task", "seed", "draw", "difference"]
    data = grids.plain(f"pairs-{kind}", head, lines, 4)
    ends = (f"\u2212{largest:g}", f"+{largest:g}")
    sentence = _sentence(groups[0][1], groups[0][2]) if len(groups) == 1 else _tally([found for *_, found in groups])
    return Question(text, headline, sentence, answers, ends, data)


def _tally(rows: Sequence[Sequence[Comparison]]) -> str:
    """In how many rows the mean gains, by what it is compared with."""
    means: dict[str, list[float]] = {}
    for found in rows:
        for comparison in found:
            means.setdefault(AGAINST.get(comparison.against, comparison.against), []).append(comparison.mean)
    parts = [
        f"against {name} {sum(value > 0 for value in values)} of {len(values)} ({_span(values)})"
        for name, values in means.items()
    ]
    return f"Rows that gain: {'; '.join(parts)}." if parts else ""


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return signed(low) if low == high else f"{signed(low)} to {signed(high)}"


def _sentence(row: str, found: Sequence[Comparison]) -> str:
    if not found:
        return ""
    parts = []
    for comparison in found:
        verb = "gains" if comparison.mean > 0 else "loses" if comparison.mean < 0 else "makes no difference"
        amount = f" {abs(comparison.mean):.2f}" if comparison.mean else ""
        parts.append(f"{verb}{amount} against {AGAINST.get(comparison.against, comparison.against)}")
    return f"{row} {'; '.join(parts)} (percentage points, mean over tasks)."


def _contrast(row: str, comparison: Comparison, largest: float) -> Contrast:
    found, repeats = comparison.sum, comparison.num_repeats
    low, high = comparison.interval
    mean, number = found.mean, found.pairs
    against = AGAINST.get(comparison.against, comparison.against)
    said = f"{row} against {against}: mean {mean:+.2f} points over {number} pair{'s' * (number > 1)}"
    if low is not None and high is not None:
        said = f"{said}, 95 % interval {low:+.2f} to {high:+.2f}"
    return Contrast(
        against=against,
        strip=figures.strip([p.value for p in comparison.pairs], mean, (low, high), largest, said),
        mean=signed(mean),
        mark="gain" if mean > 0 else "loss" if mean < 0 else "",
        interval="" if low is None or high is None else f"{signed(low)} to {signed(high)}",
        counts=f"{found.wins} won, {f'{found.ties} tied, ' if found.ties else ''}{found.losses} lost",
        extent=f"n = {number}: {found.tasks} task{'s' * (found.tasks > 1)}, {repeats} seed{'s' * (repeats > 1)}",
    )
