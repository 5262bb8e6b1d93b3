"""The tables of a paper: their lines and columns, and what each cell says; no format yet. Never imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from headwise.comparison.comparable import natural
from headwise.comparison.controls import KINDS
from headwise.comparison.costs import COSTS, in_words
from headwise.comparison.mechanism import MEASURES, correlations, lies
from headwise.comparison.pays import GROUP, IMPROVEMENT, INTERACTION, OVERALL, TASK
from headwise.comparison.tables import Table
from headwise.report.grid import Cell, Grid, marked, measured, sign
from headwise.results.records import FEWSHOT, GROUP_SIZES

WIDE = 8
"""Tasks and averages beyond which phases are lines of a table, not columns."""
Place = tuple[str, str]
"""A column: a task or average, and a phase, which is empty where phases are lines."""
_GROUPS = {**{name: name for name in GROUP_SIZES}, FEWSHOT: "few-shot", "average": "means"}
RATIO_NOTE = (
    "Accuracy with heads off over that of the same run with none off, formed task by task and seed by seed; 1 is no "
    "change. Mean \u00b1 sample standard deviation over seeds, n in brackets."
)
PAYS = "where it pays"
PAYS_NOTE = (
    "The differences above by group of tasks and by task, percentage points. Of a group: mean over those of its tasks "
    "that are here, and its 95 % interval, a bootstrap as above, from six pairs on. structured - natural: how much "
    "more the one is than the other, with an interval where both groups have six pairs."
)
IMPROVED_NOTE = (
    "Chance to be better: the probability that a run of the method is better than one it is compared with, over all "
    "pairs of runs of a task, ties half, mean over the tasks; 0.5 is no difference. The interval draws tasks, "
    "then seeds."
)
MECHANISM = "where second phases lie"
MECHANISM_NOTE = (
    "Gain of the last phase over the one before it, percentage points, and the shares of the energy of a head's update "
    "in it that lie where it says: means over heads, projections and runs."
)
TESTED_NOTE = (
    "Of a task: mean over its seeds; p of a two-sided paired t test over them, and that p after Holm's adjustment for "
    "all tasks of its line (not for the number of lines). One seed, or differences that are all the same, have none."
)


def parts(table: Table) -> list[tuple[Grid, Sequence[str]]]:
    """Return the grids of a table with the sentences over each; the first, the main one, has no name."""
    grids: list[tuple[Grid, Sequence[str]]] = [(accuracies(table), table.notes)]
    if len(table.paired):
        grids.append((paired(table), [paired_note(table), *table.answers]))
    if len(table.pays):
        grids.append((pays(table), [PAYS_NOTE, IMPROVED_NOTE, TESTED_NOTE]))
    if len(table.mechanism):
        grids.append((mechanism(table), [MECHANISM_NOTE, *correlations(table.mechanism)]))
    if len(table.ratios):
        grids.append((ratios(table), [RATIO_NOTE]))
    if table.apart:
        grids.append((apart(table), table.apart))
    return grids


def accuracies(table: Table) -> Grid:
    """A line per row of ours (and phase, where there are many columns), below it the published rows beside it."""
    cells, shown = table.cells, table.published[table.published["comparable"].astype(bool)]
    phases = sorted(set(cells["phase"]))
    tall = len(phases) > 1 and cells["column"].nunique() > WIDE
    columns = _columns(cells, tall)
    body: list[list[Cell]] = []
    seen: set[str] = set()
    costs = table.costs.set_index("row")
    for row in sorted(set(cells["row"]), key=natural):
        mine = cells[cells["row"] == row]
        own = sorted(set(mine["phase"]))
        for phase in own if tall else [""]:
            part = mine[mine["phase"] == phase] if tall else mine
            # Costs are those of all phases together, so they stand in the line of the last one.
            spent = [Cell(in_words(costs.loc[row, name]) if phase in ("", own[-1]) else "") for name in COSTS]
            at = {(c.column, "" if tall else c.phase): measured(c) for c in part.itertuples()}
            label = row if phase == "" or len(own) == 1 else f"{row} {phase}"
            body.append([Cell(label), *spent, *(at.get(place, Cell()) for place in columns)])
            # A paper's row belongs to every variant of its method here; it is printed once, below the first.
            beside = shown[(shown["row"] == row) & (shown["phase"].isin([phase] if tall else phases))]
            body += _printed(beside[~beside["row_id"].isin(list(seen))], columns)
            seen |= set(beside["row_id"])
    single = {phase for _, phase in columns} <= {"P1", ""}
    names = [name if single else f"{name} {phase}" for name, phase in columns]
    groups = dict(zip(cells["column"], cells["group"], strict=True))
    runs = itertools.groupby(_GROUPS.get(groups[name], "") for name, _ in columns)
    spans = [("", 1 + len(COSTS)), *((group, len(list(run))) for group, run in runs)]
    return Grid("", ["method", *(cost.title for cost in COSTS.values()), *names], marked(body), spans=spans)


def _columns(cells: pd.DataFrame, tall: bool) -> list[Place]:
    names = list(dict.fromkeys(cells["column"]))
    if tall:
        return [(name, "") for name in names]
    pairs = set(zip(cells["column"], cells["phase"], strict=True))
    return sorted(pairs, key=lambda pair: (names.index(pair[0]), pair[1]))


def _printed(published: pd.DataFrame, columns: Sequence[Place]) -> list[list[Cell]]:
    """A line per published row; its size stands where ours has parameters."""
    lines = []
    for _, part in published.groupby("row_id", sort=False):
        first = part.iloc[0]
        texts = {place: c.text for c in part.itertuples() for place in ((c.column, c.phase), (c.column, ""))}
        spent = [first["size"], *[""] * (len(COSTS) - 1)]
        lines.append([Cell(f"published: {first['title']}"), *map(Cell, spent)])
        lines[-1] += [Cell(texts.get(place, "")) for place in columns]
    return lines


def paired(table: Table) -> Grid:
    """The paired differences: a line per row and kind, all tasks together, then each task.

    The interval and the wins, ties and losses are over all tasks and seeds.
    """
    cells = table.paired
    names = list(dict.fromkeys(cells["column"]))
    at = {(c.row, c.phase, c.column): measured(c, "{:+.2f}".format) for c in cells.itertuples()}
    together = {(c.row, c.phase): c for c in table.contrasts.itertuples()}
    body = []
    for row, kind in _lines(cells):
        if total := together.get((row, kind)):
            tasks = (at.get((row, kind, name), Cell()) for name in names)
            body.append([*map(Cell, (row, kind, *_summary(total))), *tasks])
    head = ["method", "difference", "mean", "95 % interval", "wins / ties / losses", "tasks, pairs", *names]
    return Grid("paired differences", head, body, num_left=2)


def _lines(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Rows and kinds of difference, rows by name and kinds in the order of `KINDS`."""
    both = set(zip(cells["row"], cells["phase"], strict=True))
    return sorted(both, key=lambda line: (natural(line[0]), _kind(line[1])))


def _kind(phase: str) -> tuple[int, str]:
    other = phase.partition(" - ")[2]
    return (list(KINDS).index(other) if other in KINDS else len(KINDS), phase)


def _summary(total: Any) -> list[str]:
    interval = "" if pd.isna(total.low) else f"{total.low:+.2f} to {total.high:+.2f}"
    counts = f"{total.wins} / {total.ties} / {total.losses}"
    return [f"{total.mean:+.2f}", interval, counts, f"{total.tasks}, {total.pairs}"]


def pays(table: Table, written: Callable[[float], str] = "{:+.2f}".format) -> Grid:
    """Where differences come from: a line per row and kind; groups, the chance to be better, then each task."""
    at = {(c.row, c.phase, c.column): c for c in table.pays.itertuples()}
    kinds = dict(zip(table.pays["column"], table.pays["kind"], strict=True))
    groups = [name for name in (*GROUP_SIZES, *kinds) if kinds.get(name) in (GROUP, INTERACTION)]
    tasks = [name for name in dict.fromkeys(table.paired["column"]) if kinds.get(name) == TASK]
    columns = [*dict.fromkeys(groups), OVERALL, *tasks]
    body = []
    for row, phase in _lines(table.pays):
        cells = ((at.get((row, phase, name)), written) for name in columns)
        body.append([Cell(row), Cell(phase), *(_said(cell, form) for cell, form in cells)])
    head = ["chance to be better" if name == OVERALL else name for name in columns]
    return Grid(PAYS, ["method", "difference", *head], body, num_left=2)


def _said(cell: Any, written: Callable[[float], str]) -> Cell:
    """A mean, and what says how sure it is: an interval, or p values; empty where there is none."""
    if cell is None:
        return Cell()
    if cell.kind == IMPROVEMENT:
        written = "{:.2f}".format
    small = "" if pd.isna(cell.low) else f"({written(cell.low)} to {written(cell.high)})"
    if not pd.isna(cell.p):
        small = f"(p {_probable(cell.p)}, Holm {_probable(cell.holm)})"
    return Cell(written(cell.mean), cell.mean, small, "" if cell.kind == IMPROVEMENT else sign(cell.mean))


def _probable(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def mechanism(table: Table) -> Grid:
    """Where second phases lie: a line per row and task, means over its runs."""
    body = []
    for line in lies(table.mechanism).to_dict("records"):
        shares = (Cell() if pd.isna(line[name]) else Cell(f"{line[name]:.3f}", line[name]) for name in MEASURES)
        gain = Cell(f"{line['gain']:+.2f}", line["gain"], "", sign(line["gain"]))
        body.append([Cell(line["row"]), Cell(line["column"]), gain, *shares, Cell(str(line["n"]), line["n"])])
    return Grid(MECHANISM, ["method", "task", "gain", *MEASURES.values(), "runs"], body, num_left=2)


def ratios(table: Table) -> Grid:
    """The ratios to the run with no head off: a line per row, a column per task."""
    cells = table.ratios
    names = list(dict.fromkeys(cells["column"]))
    at = {(c.row, c.column): measured(c, "{:.4f}".format, digits=4) for c in cells.itertuples()}
    rows = sorted(set(cells["row"]), key=natural)
    body = [[Cell(row), *(at.get((row, name), Cell()) for name in names)] for row in rows]
    return Grid("ratios to no head off", ["method", *names], body)


def paired_note(table: Table) -> str:
    """What the paired differences of a table are."""
    kinds = {phase.partition(" - ")[2] for phase in table.paired["phase"]}
    named = [f"minus {kind.full} ({name})" for name, kind in KINDS.items() if name in kinds]
    what = f": the last phase {', '.join(named)}" if named else ""
    return (
        f"Percentage points, formed task by task and seed by seed{what}. The mean is over the tasks, of each task's "
        "mean over its seeds; its interval is a bootstrap over tasks, then their seeds (10,000 resamples), given "
        "from six pairs on. From fewer than about five tasks it is too narrow, with one task it speaks of this task's "
        "seeds only. Wins, ties and "
        "losses are pairs. Per task: mean \u00b1 sample standard deviation over seeds, n in brackets. An empty cell is "
        "a run that is missing."
    )


def apart(table: Table) -> Grid:
    """The published rows that may not be set beside ours: a line each, a column per task."""
    rest = table.published[~table.published["comparable"].astype(bool)]
    order = list(dict.fromkeys(table.cells["column"]))
    names = sorted(set(rest["column"]), key=order.index)
    body = []
    for _, part in rest.groupby("row_id", sort=False):
        first, texts = part.iloc[0], dict(zip(part["column"], part["text"], strict=True))
        line = (first["title"], first["phase"], first["size"], *(texts.get(name, "") for name in names))
        body.append(list(map(Cell, line)))
    return Grid("published rows, apart", ["published row", "phase", "size", *names], body, num_left=2)
