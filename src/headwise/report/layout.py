"""What stands where in a table: lines, columns, and the text of each cell; no format yet. Never imports torch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from headwise.comparison.comparable import natural
from headwise.comparison.controls import KINDS
from headwise.comparison.tables import Table

Lines = tuple[list[str], list[list[str]]]
"""Head and body."""
COSTS = {"parameters": "parameters", "head": "head", "stored_bytes": "stored bytes", "epochs": "epochs"}
WIDE = 8
"""Tasks and averages beyond which phases are lines of a table, not columns."""


@dataclass
class Line:
    """One line of a table: its label, its costs, its cells by column, and which are best (1) and second (2)."""

    label: str
    costs: list[str]
    cells: dict[tuple[str, str], str]
    ranks: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass
class Layout:
    """The main part of a table. A column is a task or average and a phase, empty where phases are lines."""

    columns: list[tuple[str, str]]
    groups: dict[tuple[str, str], str]
    lines: list[Line]

    @property
    def head(self) -> list[str]:
        """Titles of all columns."""
        single = {phase for _, phase in self.columns} <= {"P1", ""}
        return ["method", *COSTS.values(), *(name if single else f"{name} {phase}" for name, phase in self.columns)]

    def body(self) -> list[list[str]]:
        """Text of all lines; an empty cell is a run that is missing, or lost from a paper."""
        return [[n.label, *n.costs, *(n.cells.get(place, "") for place in self.columns)] for n in self.lines]


def layout(table: Table) -> Layout:
    """Arrange the main part: a line per row of ours, below it the published rows that may stand beside it."""
    cells, shown = table.cells, table.published[table.published["comparable"].astype(bool)]
    phases = sorted(set(cells["phase"]))
    tall = len(phases) > 1 and cells["column"].nunique() > WIDE
    columns = _columns(cells, tall)
    ranks = _ranks(cells, tall)
    lines: list[Line] = []
    seen: set[str] = set()
    costs = table.costs.set_index("row")
    for row in sorted(set(cells["row"]), key=natural):
        mine = cells[cells["row"] == row]
        own = sorted(set(mine["phase"]))
        for phase in own if tall else [""]:
            part = mine[mine["phase"] == phase] if tall else mine
            spent = [_range(costs.loc[row, name]) if phase in ("", own[-1]) else "" for name in COSTS]
            texts = {(c.column, "" if tall else c.phase): _cell(c) for c in part.itertuples()}
            lines.append(Line(row if phase == "" or len(own) == 1 else f"{row} {phase}", spent, texts))
            lines[-1].ranks = {place: rank for name in own if phase in ("", name) for place, rank in ranks[row, name]}
            beside = shown[(shown["row"] == row) & (shown["phase"].isin([phase] if tall else phases))]
            lines += _printed(beside[~beside["row_id"].isin(list(seen))], tall)
            seen |= set(beside["row_id"])
    groups = dict(zip(cells["column"], cells["group"], strict=True))
    return Layout(columns, {place: groups[place[0]] for place in columns}, lines)


def _columns(cells: pd.DataFrame, tall: bool) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(cells["column"]))
    if tall:
        return [(name, "") for name in names]
    pairs = set(zip(cells["column"], cells["phase"], strict=True))
    return sorted(pairs, key=lambda pair: (names.index(pair[0]), pair[1]))


def _printed(published: pd.DataFrame, tall: bool) -> list[Line]:
    """A line per published row; its size stands where ours has parameters."""
    lines = []
    for _, part in published.groupby("row_id", sort=False):
        first = part.iloc[0]
        texts = {(c.column, "" if tall else c.phase): c.text for c in part.itertuples()}
        lines.append(Line(f"published: {first['title']}", [first["size"], *[""] * (len(COSTS) - 1)], texts))
    return lines


def _ranks(cells: pd.DataFrame, tall: bool) -> dict[tuple[str, str], list[tuple[tuple[str, str], int]]]:
    """By row and phase: the columns where it is best (1) or second (2) of several of ours, by what is printed."""
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for c in cells.itertuples():
        values.setdefault((c.column, "" if tall else c.phase), {})[c.row, c.phase] = round(c.mean, 2)
    ranks: dict[tuple[str, str], list[tuple[tuple[str, str], int]]] = defaultdict(list)
    for place, found in values.items():
        top = sorted(set(found.values()), reverse=True)[:2] if len(found) > 1 else []
        for key, value in found.items():
            if value in top:
                ranks[key].append((place, top.index(value) + 1))
    return ranks


def accuracies(table: Table) -> Lines:
    """Head and body of the main part: a line per row (and phase, where there are many columns), costs, cells."""
    found = layout(table)
    return found.head, found.body()


def paired(table: Table) -> Lines:
    """Head and body of the paired differences: a line per row and kind, all tasks together, then each task.

    The interval and the wins, ties and losses are over all tasks and seeds.
    """
    cells = table.paired
    names = list(dict.fromkeys(cells["column"]))
    text = {(c.row, c.phase, c.column): _cell(c) for c in cells.itertuples()}
    together = {(c.row, c.phase): c for c in table.contrasts.itertuples()}
    kinds = sorted(set(cells["phase"]), key=_kind)
    body = []
    for row in sorted(set(cells["row"]), key=natural):
        for kind in kinds:
            if (found := together.get((row, kind))) is not None:
                body.append([row, kind, *_summary(found), *(text.get((row, kind, name), "") for name in names)])
    return ["method", "difference", "mean", "95 % interval", "wins / ties / losses", "tasks, pairs", *names], body


def _kind(phase: str) -> tuple[int, str]:
    other = phase.partition(" - ")[2]
    return (list(KINDS).index(other) if other in KINDS else len(KINDS), phase)


def _summary(found: Any) -> list[str]:
    interval = "" if pd.isna(found.low) else f"{found.low:+.2f} to {found.high:+.2f}"
    counts = f"{found.wins} / {found.ties} / {found.losses}"
    return [f"{found.mean:+.2f}", interval, counts, f"{found.tasks}, {found.pairs}"]


RATIO_NOTE = (
    "Accuracy with heads off over that of the same run with none off, formed task by task and seed by seed; 1 is no "
    "change. Mean \u00b1 sample standard deviation over seeds, n in brackets."
)


def ratios(table: Table) -> Lines:
    """Head and body of the ratios to the run with no head off: a line per row, a column per task."""
    cells = table.ratios
    names = list(dict.fromkeys(cells["column"]))
    text = {(c.row, c.column): _ratio(c) for c in cells.itertuples()}
    rows = sorted(set(cells["row"]), key=natural)
    return ["method", *names], [[row, *(text.get((row, name), "") for name in names)] for row in rows]


def _ratio(cell: Any) -> str:
    deviation = "" if cell.n < 2 else f" \u00b1 {cell.std:.4f}"
    return f"{cell.mean:.4f}{deviation} ({cell.n})"


def paired_note(table: Table) -> str:
    """What the paired differences of a table are."""
    kinds = {phase.partition(" - ")[2] for phase in table.paired["phase"]}
    named = [f"minus {text} ({name})" for name, text in KINDS.items() if name in kinds]
    what = f": the last phase {', '.join(named)}" if named else ""
    return (
        f"Percentage points, formed task by task and seed by seed{what}. The mean is over the tasks, of each task's "
        "mean over its seeds; its interval is a bootstrap over tasks, then their seeds (10,000 resamples), given "
        "from six pairs on. From fewer than about five tasks it is too narrow, with one task it speaks of this task's "
        "seeds only. Wins, ties and "
        "losses are pairs. Per task: mean \u00b1 sample standard deviation over seeds, n in brackets. An empty cell is "
        "a run that is missing."
    )


def apart(table: Table) -> Lines:
    """Head and body of the published rows that may not be set beside ours: a line each, a column per task."""
    rest = table.published[~table.published["comparable"].astype(bool)]
    order = list(dict.fromkeys(table.cells["column"]))
    names = sorted(set(rest["column"]), key=order.index)
    body = []
    for _, part in rest.groupby("row_id", sort=False):
        first, texts = part.iloc[0], dict(zip(part["column"], part["text"], strict=True))
        body.append([first["title"], first["phase"], first["size"], *(texts.get(name, "") for name in names)])
    return ["published row", "phase", "size", *names], body


def _cell(cell: Any) -> str:
    sign = "+" if " - " in cell.phase else ""
    deviation = "" if cell.n < 2 else f" \u00b1 {cell.std:.2f}"
    return f"{cell.mean:{sign}.2f}{deviation} ({cell.n})"


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
