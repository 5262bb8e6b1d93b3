"""Gated runs beside their twins: the same run, of the same seed, without a mask. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headwise.comparison.cells import bullets, pipes
from headwise.comparison.comparable import places, shared_choices
from headwise.comparison.controls import ground
from headwise.results.records import Result

HEAD = (
    *("dataset", "run", "seeds", "masked %", "without mask %", "paired difference"),
    *("stored B", "paper's formula B", "without mask B", "scoring (epochs)"),
)


@dataclass(frozen=True)
class Pair:
    """One gated run and its twin.

    Attributes:
        row: as tables name it: method and variant.
        dataset, repeat: of both; the seed, and of a few-shot set the draw.
        gated, plain: accuracies, percent; `plain` is None where the twin has not been run.
        bytes, paper_bytes, plain_bytes: stored, by the paper's formula, and of the twin; None where unknown.
        scoring: time of the scoring pass, in epochs of that run; None where nothing was scored.
    """

    row: str
    dataset: str
    repeat: tuple[int, int]
    gated: float
    plain: float | None
    bytes: int
    paper_bytes: int | None
    plain_bytes: int | None
    scoring: float | None


def pairs(results: Iterable[Result]) -> tuple[list[Pair], list[str]]:
    """Every run with heads off, with its twin if that is among the results; and notes on what their rows share."""
    results = [result for result in results if result.accuracy is not None]
    plain = {ground(result): result for result in results if not result.phases[-1].is_masked}
    masked = [result for result in results if result.phases[-1].is_masked]
    common = shared_choices(masked)
    where, notes = places(masked, common=common)
    twinned = []
    for result in masked:
        last = result.phases[-1]
        twin = plain.get(ground(result))
        # in epochs of the same run, and not in seconds: runs of different machines stand in one table
        epoch = last.seconds / last.epochs if last.epochs else 0.0
        scored = bool(last.gate.get("scoring_seconds")) and epoch > 0
        row, column = where[result.key]
        twinned.append(
            Pair(
                row=row,
                dataset=column,
                repeat=result.repeat,
                gated=float(last.accuracy or 0.0),
                plain=None if twin is None else twin.accuracy,
                bytes=last.stored_bytes,
                paper_bytes=last.extra.get("paper_bytes"),
                plain_bytes=None if twin is None else twin.phases[-1].stored_bytes,
                scoring=last.gate["scoring_seconds"] / epoch if scored else None,
            )
        )
    shared = [f"Every row: {', '.join(common)}."] if common else []
    return sorted(twinned, key=lambda pair: (pair.dataset, pair.row, pair.repeat)), [*shared, *notes]


def markdown(twinned: Iterable[Pair], notes: Sequence[str] = ()) -> str:
    """A Markdown table: accuracy with and without mask, the paired difference, sizes, and what scoring cost."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in twinned:
        groups.setdefault((pair.dataset, pair.row), []).append(pair)
    body = []
    for (dataset, row), members in groups.items():
        both = [(pair.gated, pair.plain) for pair in members if pair.plain is not None]
        gaps = [gated - plain for gated, plain in both]
        scoring = [pair.scoring for pair in members if pair.scoring is not None]
        sizes = [pair.plain_bytes for pair in members if pair.plain_bytes is not None]
        cells = [
            dataset,
            row,
            str(len(members)),
            spread([pair.gated for pair in members]),
            spread([plain for _, plain in both]),
            spread(gaps, sign=True),
            f"{members[0].bytes:,}",
            "" if members[0].paper_bytes is None else f"{members[0].paper_bytes:,}",
            f"{sizes[0]:,}" if sizes else "",
            f"{max(scoring):.2f}" if scoring else "",
        ]
        body.append(cells)
    above = f"{bullets(notes)}\n\n" if notes else ""
    return above + "\n".join(pipes(HEAD, body, num_left=2)) + "\n"


def spread(values: list[float], sign: bool = False) -> str:
    """``mean +- std (n)`` with n - 1 in the standard deviation; empty without values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):+.2f}" if sign else f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.2f} ({len(values)})"
