"""What a run costs besides its accuracy: the columns that tables and page have in common. Standard library only.

A new column is one entry of `COSTS` and one property of `headwise.results.records.Result`: captions apart, every form
of a table takes its columns from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headwise.results.records import Result

Span = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """One column: its title, the number of one tested run, and a shorter title for narrow tables."""

    title: str
    of: Callable[[Result], int]
    short: str = ""


COSTS = {
    "parameters": Cost("parameters", lambda result: result.num_tunable),
    "head": Cost("head", lambda result: result.tested[-1].num_head),
    "stored_bytes": Cost("stored bytes", lambda result: result.stored_bytes, "stored B"),
    "epochs": Cost("epochs", lambda result: result.epochs),
}
"""By the name that files of data give them."""


def spans(results: Sequence[Result]) -> dict[str, Span]:
    """Return the smallest and the largest of each cost over tested runs, at least one."""
    numbers = {name: [cost.of(result) for result in results] for name, cost in COSTS.items()}
    return {name: (min(values), max(values)) for name, values in numbers.items()}


def in_words(span: Span, between: str = " to ") -> str:
    """Return a span in words: one number where both ends are equal."""
    low, high = span
    return f"{low:,}" if low == high else f"{low:,}{between}{high:,}"
