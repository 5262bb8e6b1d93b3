"""A table as a paper wants it: some rows and columns, in an order, by other names, with one sentence for a caption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from headwise.comparison.costs import COSTS
from headwise.errors import ConfigError, suggest
from headwise.report.grid import Cell, Grid, marked

COUNT = COSTS["parameters"].title
_LARGE = 10_000
"""Parameters from which on those of a column are written in millions."""
_COUNT = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})*(?![\d.,]|\s*[MK%])")


@dataclass(frozen=True)
class Selection:
    """What is shown of a main table.

    Attributes:
        rows: patterns (``*``) of rows as the table names them, in the order to be shown; empty for all.
        columns: the same of columns, with their phase (``svhn P2``) or without; the first column stays.
        names: other names of rows and columns; those that a table lacks are another table's.
        is_short: a caption of one sentence, parameters in millions, and the main table alone.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    is_short: bool = False

    def of(self, grid: Grid) -> Grid | None:
        """The part of a grid that is shown; None where it has no such row, or no such column."""
        labels = [[line[0].text] for line in grid.body]
        rows = _chosen(self.rows, labels) if self.rows else range(len(labels))
        columns = _chosen(self.columns, _heads(grid), 1) if self.columns else range(1, len(grid.head))
        if (self.rows and not rows) or (self.columns and not columns):
            return None
        places = [0, *columns]
        head = [self.names.get(grid.head[place], self._renamed(grid.head[place])) for place in places]
        lines = marked([grid.body[row] for row in rows])
        counts = in_millions([line[place].text for line in lines for place in places if grid.head[place] == COUNT])
        body = [[self._cell(line[place], grid.head[place], counts) for place in places] for line in lines]
        over = [grid.over[place] for place in places]
        spans: list[tuple[str, int]] = []
        for text in over:
            spans[-1:] = [(text, spans[-1][1] + 1)] if spans and spans[-1][0] == text else [*spans[-1:], (text, 1)]
        return replace(grid, head=head, body=body, spans=spans if any(over) else ())

    def check(self, grids: Sequence[Grid]) -> None:
        """Refuse what no grid has: a table may lack what another one of the same command shows."""
        labels = [line[0].text for grid in grids for line in grid.body]
        heads = [name for grid in grids for names in _heads(grid) for name in names]
        for option, patterns, every in (("--rows", self.rows, labels), ("--columns", self.columns, heads)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in every):
                    where = "the table" if len(grids) == 1 else f"any of the {len(grids)} tables"
                    hint = suggest(pattern, dict.fromkeys(every))
                    raise ConfigError(f"{option}: no {option[2:-1]} {pattern!r} in {where}{hint}")

    def _renamed(self, head: str) -> str:
        """A column by another name, its phase after it."""
        name, _, phase = head.rpartition(" ")
        return f"{self.names[name]} {phase}" if name in self.names else head

    def _cell(self, cell: Cell, head: str, counts: Mapping[str, str]) -> Cell:
        if head == COUNT:
            return replace(cell, text=counts[cell.text]) if self.is_short else cell
        return replace(cell, text=self.names.get(cell.text, cell.text))


def in_millions(texts: Sequence[str]) -> dict[str, str]:
    """Counts in the texts of a column, ``718,848``, in millions, ``0.72 M``, all of them if one is large; by text.

    Small ones keep two digits that are not 0: ``0.0048 M``. What is in millions already, as papers print it, stays.
    """
    counts = [int(word.replace(",", "")) for text in texts for word in _COUNT.findall(text)]
    if max(counts, default=0) < _LARGE:
        return {text: text for text in texts}

    def written(match: re.Match[str]) -> str:
        count = int(match[0].replace(",", "")) / 1e6
        return f"{count:.2f} M" if count >= 0.01 or not count else f"{float(f'{count:.2g}'):f}".rstrip("0") + " M"

    return {text: _COUNT.sub(written, text) for text in texts}


def _heads(grid: Grid) -> list[list[str]]:
    """Names of each column but the first: its own, and without a phase."""
    return [list(dict.fromkeys([name, name.rpartition(" ")[0] or name])) for name in grid.head[1:]]


def _chosen(patterns: Sequence[str], named: Sequence[Sequence[str]], start: int = 0) -> list[int]:
    """Places of what the patterns match, in their order, counted from `start`; nothing twice."""
    places: list[int] = []
    for pattern in patterns:
        found = [place for place, names in enumerate(named, start) if any(fnmatchcase(name, pattern) for name in names)]
        places += [place for place in found if place not in places]
    return places
