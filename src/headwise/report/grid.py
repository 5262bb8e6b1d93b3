"""The one model of a table, for files and the page: what each cell says, what it is sorted by. No pandas, no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from headwise.comparison.cells import in_csv

BEST, SECOND = "best", "second"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: shown.
        value: sorted by; None sorts by the text, and an empty cell last.
        small: shown after it, muted where that is possible.
        mark: class of the page's style sheet; files know `BEST` and `SECOND`.
        badge: a warning, shown after all on the page.
    """

    text: str = ""
    value: float | None = None
    small: str = ""
    mark: str = ""
    badge: str = ""

    def __str__(self) -> str:
        """Text and small text, as a file without styles has them."""
        return f"{self.text} {self.small}" if self.small else self.text


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        name: on the page of the file that its data is saved as, without suffix; else what the table shows.
        head: names of the columns.
        body: as many cells a line; an empty one is a run that is missing, or a number that was lost from a paper.
        csv: its data, unrounded, for the page.
        spans: headings over neighbouring columns, each with their number; none where all are empty.
        num_left: leading columns of text; the others are numbers.
    """

    name: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    csv: str = ""
    spans: Sequence[tuple[str, int]] = field(default_factory=tuple)
    num_left: int = 1

    @property
    def link(self) -> str:
        """The data as an address of its own: nothing is loaded."""
        return f"data:text/csv;charset=utf-8,{quote(self.csv)}"

    @property
    def over(self) -> list[str]:
        return [text for text, count in self.spans for _ in range(count)] or [""] * len(self.head)


def plain(name: str, head: Sequence[str], lines: Sequence[Sequence[Any]], num_left: int = 1) -> Grid:
    """A table of values as they are."""
    return Grid(name, head, [[cell_of(value) for value in line] for line in lines], to_csv(head, lines), (), num_left)


def to_csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Values unrounded, what is undefined left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([in_csv(name) for name in head])
    # NaN, of pandas for what does not exist, is the only value that differs from itself.
    writer.writerows(["" if value is None or value != value else in_csv(value) for value in line] for line in lines)
    return out.getvalue()


def cell_of(value: Any) -> Cell:
    """A value as it is; empty where there is none."""
    if value is None or value != value:
        return Cell()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.5g}", value)


def measured(cell: Any, written: Callable[[float], str] = "{:.2f}".format, mark: str = "", digits: int = 2) -> Cell:
    """Mean, sample deviation and n of a line of a table's data; empty where there is none.

    Args:
        cell: with ``mean``, ``std`` and ``n``, or None.
        written: the mean in words.
        digits: of the deviation.
    """
    if cell is None or cell.mean != cell.mean:
        return Cell()
    deviation = "" if cell.std != cell.std else f"\u00b1 {cell.std:.{digits}f} "
    return Cell(written(cell.mean), float(cell.mean), f"{deviation}({cell.n})", mark)


def marked(body: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Lines of a table with the best of each column and the second marked, by what is printed, where it has several."""
    columns = []
    for column in zip(*body, strict=True):
        shown = [None if cell.value is None else round(cell.value, 2) for cell in column]
        values = [value for value in shown if value is not None]
        top = sorted(set(values), reverse=True)[:2] if len(values) > 1 else []
        marks = ["" if value not in top else (BEST, SECOND)[top.index(value)] for value in shown]
        columns.append([replace(cell, mark=mark) for cell, mark in zip(column, marks, strict=True)])
    return [list(line) for line in zip(*columns, strict=True)]


def signed(value: float) -> str:
    """Two digits and the sign, the minus as long as the plus; zero has none."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\u2212")


def sign(value: float) -> str:
    """Class of the page's style sheet for a difference."""
    return "gain" if value > 0 else "loss" if value < 0 else ""
