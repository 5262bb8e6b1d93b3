"""A table as a paper wants it: some rows and columns, in an order, by other names, with one sentence for a caption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from headwise.comparison.costs import COSTS
from headwise.errors import ConfigError, suggest
from headwise.report.grid import Cell, Grid

COUNT = COSTS["parameters"].title
_LARGE = 10_000
"""Parameters from which on they are written in millions."""


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

    def of(self, grid: Grid) -> Grid:
        """The part of a grid that is shown.

        Raises:
            ConfigError: for a pattern that no row or column matches.
        """
        labels = [line[0].text for line in grid.body]
        heads = [list(dict.fromkeys([name, name.rpartition(" ")[0] or name])) for name in grid.head]
        rows = _chosen("--rows", self.rows, [[label] for label in labels]) if self.rows else range(len(labels))
        columns = _chosen("--columns", self.columns, heads[1:], 1) if self.columns else range(1, len(heads))
        places = [0, *columns]
        head = [self.names.get(grid.head[place], self._renamed(grid.head[place])) for place in places]
        body = [[self._cell(grid, grid.body[row][place], place) for place in places] for row in rows]
        over = [grid.over[place] for place in places]
        spans: list[tuple[str, int]] = []
        for text in over:
            spans[-1:] = [(text, spans[-1][1] + 1)] if spans and spans[-1][0] == text else [*spans[-1:], (text, 1)]
        return replace(grid, head=head, body=body, spans=spans if any(over) else ())

    def _renamed(self, head: str) -> str:
        """A column by another name, its phase after it."""
        name, _, phase = head.rpartition(" ")
        return f"{self.names[name]} {phase}" if name in self.names else head

    def _cell(self, grid: Grid, cell: Cell, place: int) -> Cell:
        if place == 0:
            return replace(cell, text=self.names.get(cell.text, cell.text))
        return replace(cell, text=in_millions(cell.text)) if self.is_short and grid.head[place] == COUNT else cell


def in_millions(text: str) -> str:
    """Counts in a text, ``718,848``, in millions, ``0.72 M``; smaller ones as they are."""

    def written(match: re.Match[str]) -> str:
        count = int(match[0].replace(",", ""))
        return match[0] if count < _LARGE else f"{count / 1e6:.2f} M"

    return re.sub(r"\d{1,3}(,\d{3})+", written, text)


def _chosen(option: str, patterns: Sequence[str], named: Sequence[Sequence[str]], start: int = 0) -> list[int]:
    """Places of what the patterns match, in their order, counted from `start`; nothing twice."""
    places: list[int] = []
    for pattern in patterns:
        found = [place for place, names in enumerate(named, start) if any(fnmatchcase(name, pattern) for name in names)]
        if not found:
            every = list(dict.fromkeys(name for names in named for name in names))
            raise ConfigError(f"{option}: no {option[2:-1]} {pattern!r} in the table{suggest(pattern, every)}")
        places += [place for place in found if place not in places]
    return places
