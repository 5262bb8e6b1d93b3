"""The answer at the head of the report: did head-wise adaptation pay, and what says so. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from headwise.comparison.controls import KINDS
from headwise.comparison.verdicts import QUESTIONS, Judgement, Pairs, Verdict
from headwise.report import figures
from headwise.report.grid import Grid, plain, sign, signed
from headwise.report.limits import reach


@dataclass(frozen=True)
class DrawnPairs:
    """Pairs with one kind of other run, drawn."""

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
    contrasts: Sequence[DrawnPairs]


@dataclass(frozen=True)
class Question:
    """What is asked of all rows of one kind, and what the pairs say."""

    text: str
    headline: str
    sentence: str
    answers: Sequence[Answer]
    ends: tuple[str, str]
    data: Grid


def questions(judgements: Sequence[tuple[str, Judgement]]) -> list[Question]:
    """Ask of each kind of head-wise adaptation, of each table by title, whether it paid, if any result can answer."""
    by_claim = {
        claim: [(title, judgement) for title, judgement in judgements if judgement.claim == claim]
        for claim in QUESTIONS
    }
    return [_question(claim, titled) for claim, titled in by_claim.items() if titled]


def _question(claim: str, titled: Sequence[tuple[str, Judgement]]) -> Question:
    rows = [judgement for _, judgement in titled]
    values = [[pair.value for pair in pairs.differences] for judgement in rows for pairs in judgement.pairs]
    # one scale for all rows of a question, so that their strips can be compared by eye
    largest = figures.rounded(reach(values))
    several = len({title for title, _ in titled}) > 1
    answers = []
    for title, judgement in titled:
        name = f"{title}: {judgement.row}" if several else judgement.row
        answers.append(
            Answer(name, judgement.verdict.value, [_drawn(name, pairs, largest) for pairs in judgement.pairs])
        )
    lines = [
        (title, judgement.row, pairs.against, pair.column, *pair.repeat, pair.value)
        for title, judgement in titled
        for pairs in judgement.pairs
        for pair in pairs.differences
    ]
    head = ["table", "method", "against", "task", "seed", "draw", "difference"]
    data = plain(f"pairs-{claim}", head, lines, 4)
    ends = (f"\u2212{largest:g}", f"+{largest:g}")
    real = [judgement for judgement in rows if not judgement.is_smoke]
    sentence = _sentence(real[0]) if len(real) == 1 else _tally(real)
    return Question(
        QUESTIONS[claim], _headline([judgement.verdict for judgement in rows]), sentence, answers, ends, data
    )


def _headline(verdicts: Sequence[Verdict]) -> str:
    """What rows say together: the verdict that they share, else how many have which."""
    kinds = sorted(set(verdicts), key=lambda verdict: verdict.rank)
    real = [kind for kind in kinds if kind is not Verdict.SMOKE] or kinds
    if len(kinds) == 1:
        return kinds[0].headline
    if len(real) == 1:
        smoke = verdicts.count(Verdict.SMOKE)
        return f"{real[0].headline} {smoke} of {len(verdicts)} rows are {Verdict.SMOKE.value}."
    begin = {Verdict.YES: "In part", Verdict.LEANS_YES: "Undecided"}.get(kinds[0], "Not so far")
    counts = ", ".join(f"{kind.value} {verdicts.count(kind)}" for kind in kinds)
    return f"{begin}. Of {len(verdicts)} rows: {counts}."


def _tally(rows: Sequence[Judgement]) -> str:
    """In how many rows the mean gains, by what it is compared with."""
    means: dict[str, list[float]] = {}
    for judgement in rows:
        for pairs in judgement.pairs:
            means.setdefault(KINDS[pairs.against].short, []).append(pairs.mean)
    parts = [
        f"against {name} {sum(value > 0 for value in values)} of {len(values)} ({_span(values)})"
        for name, values in means.items()
    ]
    return f"Rows that gain: {'; '.join(parts)}." if parts else ""


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return signed(low) if low == high else f"{signed(low)} to {signed(high)}"


def _sentence(judgement: Judgement) -> str:
    if not judgement.pairs:
        return ""
    parts = []
    for pairs in judgement.pairs:
        verb = "gains" if pairs.mean > 0 else "loses" if pairs.mean < 0 else "makes no difference"
        amount = f" {abs(pairs.mean):.2f}" if pairs.mean else ""
        parts.append(f"{verb}{amount} against {KINDS[pairs.against].short}")
    return f"{judgement.row} {'; '.join(parts)} (percentage points, mean over tasks)."


def _drawn(row: str, pairs: Pairs, largest: float) -> DrawnPairs:
    total, repeats = pairs.sum, pairs.num_repeats
    low, high = total.low, total.high
    against = KINDS[pairs.against].short
    title = f"{row} against {against}: mean {total.mean:+.2f} points over {total.pairs} pair{'s' * (total.pairs > 1)}"
    if low is not None and high is not None:
        title = f"{title}, 95 % interval {low:+.2f} to {high:+.2f}"
    return DrawnPairs(
        against=against,
        strip=figures.strip([pair.value for pair in pairs.differences], total.mean, (low, high), largest, title),
        mean=signed(total.mean),
        mark=sign(total.mean),
        interval="" if low is None or high is None else f"{signed(low)} to {signed(high)}",
        counts=f"{total.wins} won, {f'{total.ties} tied, ' if total.ties else ''}{total.losses} lost",
        extent=f"n = {total.pairs}: {total.tasks} task{'s' * (total.tasks > 1)}, {repeats} seed{'s' * (repeats > 1)}",
    )
