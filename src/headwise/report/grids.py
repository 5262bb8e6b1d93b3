"""Tables of the report as plain data: what each cell says, and what it is sorted by. Never imports torch."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from headwise.comparison.cells import in_csv
from headwise.comparison.comparable import Places, by_row, natural
from headwise.comparison.costs import COSTS, Span, in_words, spans
from headwise.comparison.tables import AVERAGES, Table
from headwise.report import headmap, layout
from headwise.report.grid import BEST, Cell, Grid, cell_of, measured, plain, sign, signed, to_csv
from headwise.results.records import PhaseResult, Result

_SHORT = 12
FIRST = (*AVERAGES[-2:], *AVERAGES[:-2])
"""Averages in the order of the report, which begins with them: many columns do not fit the window."""
_HASH = re.compile(r"[0-9a-f]{32,}")


def accuracies(table: Table, name: str, badges: Mapping[str, str]) -> Grid:
    """A line per row: parameters, averages, then a column per task and tested phase; the best of a task is marked."""
    cells, costs = table.cells, table.costs.set_index("row")
    columns = list(dict.fromkeys([*(name for name in FIRST if name in set(cells["column"])), *cells["column"]]))
    pairs = sorted(set(zip(cells["column"], cells["phase"], strict=True)), key=lambda p: (columns.index(p[0]), p[1]))
    best = cells.groupby("column")["mean"].max()
    at = {(c.row, c.column, c.phase): c for c in cells.itertuples()}
    single = {phase for _, phase in pairs} == {"P1"}
    body = []
    for row in sorted(set(cells["row"]), key=natural):
        line = [Cell(row, badge=badges.get(row, "")), _range(costs.loc[row, "parameters"])]
        for column, phase in pairs:
            cell = at.get((row, column, phase))
            line.append(measured(cell, mark=BEST if cell is not None and cell.mean == best[column] else ""))
        body.append(line)
    head = ["method", "parameters", *(column if single else phase for column, phase in pairs)]
    over = [] if single else [("", 2), *((c, sum(column == c for column, _ in pairs)) for c in columns)]
    return Grid(name, head, body, _csv(cells), over)


def differences(table: Table, name: str) -> Grid:
    """A line per row and kind of difference: all tasks together with the interval, pairs, then a column per task."""
    cells = table.paired
    columns = list(dict.fromkeys(cells["column"]))
    at = {(c.row, c.phase, c.column): c for c in cells.itertuples()}
    together = {(c.row, c.phase): c for c in table.contrasts.itertuples()}
    lines = sorted({(row, phase) for row, phase, _ in at}, key=lambda p: (p[0], not p[1].endswith("- P1"), p[1]))
    body = [
        [
            *(Cell(row), Cell(phase), *_together(together[row, phase])),
            *(_difference(at.get((row, phase, column))) for column in columns),
        ]
        for row, phase in lines
    ]
    head = ["method", "difference", "all tasks", "won, tied, lost", *columns]
    return Grid(name, head, body, _csv(cells), (), 2)


def pays(table: Table, name: str) -> Grid:
    """Where the differences come from, as in the tables."""
    return replace(layout.pays(table, signed), name=name, csv=_csv(table.pays))


def mechanism(table: Table, name: str) -> Grid:
    """Where second phases lie, as in the tables."""
    return replace(layout.mechanism(table), name=name, csv=_csv(table.mechanism))


def _difference(cell: Any) -> Cell:
    return measured(cell, signed, "" if cell is None else sign(cell.mean))


def _together(total: Any) -> list[Cell]:
    """Mean of all tasks, its interval unless the pairs are too few, and how many pairs were won."""
    interval = "" if pd.isna(total.low) else f"{signed(total.low)} to {signed(total.high)}"
    counts = f"{total.wins}, {total.ties}, {total.losses}"
    return [Cell(signed(total.mean), total.mean, interval, sign(total.mean)), Cell(counts, total.wins)]


def published(table: Table, name: str) -> Grid | None:
    """A line per row of a paper that stands beside one of ours, a column per task; None without any."""
    cells = table.published
    if not len(cells):
        return None
    columns = list(dict.fromkeys(cells["column"]))
    at = {(c.row, c.phase, c.row_id, c.column): c for c in cells.itertuples()}
    ours = {(c.row, c.phase, c.column): c.mean for c in table.cells.itertuples()}
    body = []
    for row, phase, row_id, title in (
        cells[["row", "phase", "row_id", "title"]].drop_duplicates().itertuples(index=False)
    ):
        line = [Cell(row), Cell(phase), Cell(str(title))]
        for column in columns:
            cell, mine = at.get((row, phase, row_id, column)), ours.get((row, phase, column))
            gap = "" if cell is None or mine is None else f"ours {signed(mine - cell.value)}"
            line.append(Cell() if cell is None else Cell(str(cell.text), float(cell.value), gap))
        body.append(line)
    return Grid(name, ["method", "phase", "published", *columns], body, _csv(cells), (), 3)


def costs(results: Sequence[Result], where: Places, name: str) -> Grid:
    """A line per row: what its runs trained, stored and took; a phase that runs share counts in each."""
    order = sorted(COSTS, key=lambda column: column != "epochs")  # what was trained stands before what it trained
    titles = [COSTS[column].title for column in order]
    head = ["method", "runs", "phases", *titles, "peak memory", "seconds", "images/s"]
    body, lines = [], []
    for row, members in sorted(by_row(results, where).items()):
        seconds = [run.seconds for run in members]
        rates = [rate for run in members if (rate := _rate(run.phases)) is not None]
        phases, spent = [len(run.phases) for run in members], spans(members)
        ends = [(min(phases), max(phases)), *(spent[column] for column in order)]
        peaks = [phase.peak_memory for run in members for phase in run.phases if phase.peak_memory]
        highest = Cell(size(max(peaks)), max(peaks)) if peaks else Cell()
        numbers = [Cell(str(len(members)), len(members)), *map(_range, ends), highest, _spread(seconds), _spread(rates)]
        body.append([Cell(row), *numbers])
        means = [statistics.fmean(values) if values else None for values in (seconds, rates)]
        written = [f"{low}..{high}" if low != high else low for low, high in ends]
        lines.append([row, len(members), *written, max(peaks, default=None), *means])
    # A column that is empty in every row, as the memory of old records, takes room and says nothing.
    kept = [place for place in range(len(head)) if any(line[place].text for line in body)]
    shown = [[line[place] for place in kept] for line in body]
    return Grid(name, [head[place] for place in kept], shown, to_csv(head, lines))


def runs(results: Sequence[Result], name: str) -> Grid:
    """A line per run."""
    num = max(len(result.tested) for result in results)
    phases = [f"P{number}" for number in range(1, num + 1)]
    head = ["experiment", "method", "task", "variant", "seed", *phases]
    head += ["seconds", "test images", "finished", "code", "run"]
    body, lines = [], []
    for result in results:
        key, values = result.key, [phase.accuracy for phase in result.tested]
        values += [None] * (num - len(values))
        seconds, images = result.seconds, result.phases[-1].num_test
        names = [key.name, key.method, key.dataset, key.variant]
        tail = [result.created[:16].replace("T", " "), commit(result), result.fingerprint]
        numbers = [cell_of(v) if isinstance(v, int) else Cell("" if v is None else f"{v:.2f}", v) for v in values]
        taken = Cell(f"{seconds:,.0f}", seconds)
        body.append([*map(Cell, names), cell_of(key.seed), *numbers, taken, cell_of(images), *map(Cell, tail)])
        lines.append([*names, key.seed, *values, seconds, images, *tail])
    return Grid(name, head, body, to_csv(head, lines), (), 4)


def heads(phase: PhaseResult, name: str) -> Grid:
    """Scores and masks of one phase: a line per projection and head."""
    return plain(name, headmap.COLUMNS, headmap.lines(phase.masks), 0)


def off(phase: PhaseResult) -> str:
    """How many heads of a phase are off, in words."""
    number, total = phase.heads_off, max(len(row["active"]) for row in phase.masks)
    return f"{number:.3g} of {total} heads off per layer"


def commit(result: Result) -> str:
    """The commit that a run was made with, and whether files differed from it."""
    git = result.git if isinstance(result.git, Mapping) else {}
    return f"{str(git.get('commit') or 'unknown')[:_SHORT]}{' + changes' if git.get('dirty') else ''}"


def shortened(text: str) -> str:
    """Text with the beginnings of the hashes in it."""
    return _HASH.sub(lambda match: match[0][:_SHORT], text)


def size(num_bytes: float) -> str:
    """Bytes as B, KiB or MiB, to three digits or whole."""
    units = ["B", "KiB", "MiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    return f"{num_bytes:,.0f} {units[0]}" if num_bytes >= 100 else f"{num_bytes:.3g} {units[0]}"


def _csv(cells: pd.DataFrame) -> str:
    return cells.map(in_csv).to_csv(index=False)


def _range(ends: Span) -> Cell:
    return Cell(in_words(ends, " \u2013 "), ends[1])


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return Cell()
    mean = statistics.fmean(values)
    deviation = f"\u00b1 {statistics.stdev(values):,.1f}" if len(values) > 1 else ""
    return Cell(f"{mean:,.1f}", mean, deviation)


def _rate(phases: Sequence[PhaseResult]) -> float | None:
    """Images per second over all phases that know theirs."""
    timed = [(p.images_per_second, p.seconds) for p in phases if p.images_per_second is not None]
    total = sum(seconds for _, seconds in timed)
    return sum(rate * seconds for rate, seconds in timed) / total if total else None
