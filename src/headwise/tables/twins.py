"""Gated runs beside their twins: the same run, of the same seed, without a mask. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from headwise.results.records import Result
from headwise.tables.comparable import shots
from headwise.tables.controls import ground


@dataclass(frozen=True)
class Pair:
    """One gated run and its twin.

    Attributes:
        row: method and mask.
        dataset, seed: of both; of a few-shot set with the shots.
        gated, plain: accuracies, percent; `plain` is None where the twin has not been run.
        bytes, paper_bytes, plain_bytes: stored, by the paper's formula, and of the twin.
        scoring: time of the scoring pass, in epochs of that run; None where nothing was scored.
    """

    row: str
    dataset: str
    seed: int
    gated: float
    plain: float | None
    bytes: int
    paper_bytes: int
    plain_bytes: int | None
    scoring: float | None


def pairs(results: Iterable[Result]) -> list[Pair]:
    """Every run with heads off, with its twin if that is among the results."""
    results = list(results)
    plain = {ground(result): result for result in results if not result.phases[-1].is_masked}
    found = []
    for result in results:
        last = result.phases[-1]
        if not last.is_masked or last.accuracy is None:
            continue
        twin = plain.get(ground(result))
        gate = last.extra["gate"]
        epoch = last.seconds / last.epochs if last.epochs else 0.0
        scored = bool(gate.get("scoring_seconds")) and epoch > 0
        found.append(
            Pair(
                row=f"{result.key.method} {_amount(gate)}",
                dataset=result.key.dataset if shots(result) is None else f"{result.key.dataset}, {shots(result)} shots",
                seed=result.key.seed,
                gated=last.accuracy,
                plain=None if twin is None else twin.accuracy,
                bytes=last.stored_bytes,
                paper_bytes=int(last.extra["paper_bytes"]),
                plain_bytes=None if twin is None else twin.phases[-1].stored_bytes,
                scoring=gate["scoring_seconds"] / epoch if scored else None,
            )
        )
    return sorted(found, key=lambda pair: (pair.dataset, pair.row, pair.seed))


def markdown(found: Iterable[Pair]) -> str:
    """A Markdown table: accuracy with and without mask, the paired difference, sizes, and what scoring cost."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        groups.setdefault((pair.dataset, pair.row), []).append(pair)
    lines = [
        "| dataset | run | seeds | masked % | without mask % | paired difference | stored B | paper's formula B "
        "| without mask B | scoring (epochs) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
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
            f"{members[0].paper_bytes:,}",
            f"{sizes[0]:,}" if sizes else "",
            f"{max(scoring):.2f}" if scoring else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], sign: bool = False) -> str:
    """``mean +- std (n)`` with n - 1 in the standard deviation; empty without values."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):+.2f}" if sign else f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.2f} ({len(values)})"


def _amount(gate: dict[str, Any]) -> str:
    for name, prefix in (("budget", "budget"), ("count", "ne"), ("ratio", "ratio")):
        if gate.get(name) is not None:
            return f"{prefix}{gate[name]}"
    return ""
