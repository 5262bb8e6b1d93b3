"""Tables of the report as plain data: what each cell says, and what it is sorted by. Never imports torch."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pandas as pd

from headwise.comparison.cells import in_csv
from headwise.comparison.comparable import Places, natural
from headwise.comparison.tables import AVERAGES, Table
from headwise.results.records import PhaseResult, Result

_SHORT = 12
FIRST = (*AVERAGES[-2:], *AVERAGES[:-2])
"""Averages in the order of the report, which begins with them: many columns do not fit the window."""
_HASH = re.compile(r"[0-9a-f]{32,}")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: shown.
        value: sorted by; None sorts by the text, and an empty cell last.
        small: shown after it, muted.
        mark: class of the style sheet.
        badge: shown after all, as a warning.
    """

    text: str = ""
    value: float | None = None
    small: str = ""
    mark: str = ""
    badge: str = ""


@dataclass(frozen=True)
class Grid:
    """One table that can be sorted and saved.

    Attributes:
        name: of the file that its data is saved as, without suffix.
        head: names of the columns.
        body: as many cells a line.
        csv: its data, unrounded.
        spans: headings over neighbouring columns, each with their number; none where all are empty.
        num_left: leading columns of text; the others are numbers.
    """

    name: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    csv: str
    spans: Sequence[tuple[str, int]] = field(default_factory=tuple)
    num_left: int = 1

    @property
    def link(self) -> str:
        """The data as an address of its own: nothing is loaded."""
        return f"data:text/csv;charset=utf-8,{quote(self.csv)}"

    @property
    def over(self) -> list[str]:
        """The heading over each column."""
        return [text for text, count in self.spans for _ in range(count)] or [""] * len(self.head)


def plain(name: str, head: Sequence[str], lines: Sequence[Sequence[Any]], num_left: int = 1) -> Grid:
    """A table of values as they are."""
    return Grid(name, head, [[cell_of(value) for value in line] for line in lines], to_csv(head, lines), (), num_left)


def to_csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Values unrounded, what is undefined left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([in_csv(name) for name in head])
    writer.writerows(["" if value is None or value != value else in_csv(value) for value in line] for line in lines)
    return out.getvalue()


def accuracies(table: Table, name: str, badges: Mapping[str, str]) -> Grid:
    """A line per row: parameters, averages, then a column per task and tested phase; the best of a task is marked.

    Args:
        table: to show.
        name: of its file.
        badges: warnings beside the names of rows.
    """
    cells, costs = table.cells, table.costs.set_index("row")
    columns = list(dict.fromkeys([*(name for name in FIRST if name in set(cells["column"])), *cells["column"]]))
    pairs = sorted(set(zip(cells["column"], cells["phase"], strict=True)), key=lambda p: (columns.index(p[0]), p[1]))
    best = cells.groupby("column")["mean"].max()
    known = {(c.row, c.column, c.phase): c for c in cells.itertuples()}
    single = {phase for _, phase in pairs} == {"P1"}
    body = []
    for row in sorted(set(cells["row"]), key=natural):
        line = [Cell(row, badge=badges.get(row, "")), _range(costs.loc[row, "parameters"])]
        for column, phase in pairs:
            cell = known.get((row, column, phase))
            line.append(_mean(cell, is_best=cell is not None and cell.mean == best[column]))
        body.append(line)
    head = ["method", "parameters", *(column if single else phase for column, phase in pairs)]
    spans = [] if single else [("", 2), *((c, sum(column == c for column, _ in pairs)) for c in columns)]
    return Grid(name, head, body, cells.map(in_csv).to_csv(index=False), spans)


def differences(table: Table, name: str) -> Grid:
    """A line per row and kind of difference: all tasks together with the interval, pairs, then a column per task."""
    cells = table.paired
    columns = list(dict.fromkeys(cells["column"]))
    known = {(c.row, c.phase, c.column): c for c in cells.itertuples()}
    together = {(c.row, c.phase): c for c in table.contrasts.itertuples()}
    lines = sorted({(row, phase) for row, phase, _ in known}, key=lambda p: (p[0], not p[1].endswith("- P1"), p[1]))
    body = [
        [
            *(Cell(row), Cell(phase), *_together(together[row, phase])),
            *(_mean(known.get((row, phase, column)), sign=True) for column in columns),
        ]
        for row, phase in lines
    ]
    head = ["method", "difference", "all tasks", "won, tied, lost", *columns]
    return Grid(name, head, body, cells.map(in_csv).to_csv(index=False), (), 2)


def _together(found: Any) -> list[Cell]:
    """Mean of all tasks, its interval unless the pairs are too few, and how many pairs were won."""
    interval = "" if pd.isna(found.low) else f"{signed(found.low)} to {signed(found.high)}"
    counts = f"{found.wins}, {found.ties}, {found.losses}"
    return [Cell(signed(found.mean), found.mean, interval, _sign(found.mean)), Cell(counts, found.wins)]


def published(table: Table, name: str) -> Grid | None:
    """A line per row of a paper that stands beside one of ours, a column per task; None without any."""
    cells = table.published
    if not len(cells):
        return None
    columns = list(dict.fromkeys(cells["column"]))
    known = {(c.row, c.phase, c.row_id, c.column): c for c in cells.itertuples()}
    ours = {(c.row, c.phase, c.column): c.mean for c in table.cells.itertuples()}
    body = []
    for row, phase, row_id, title in (
        cells[["row", "phase", "row_id", "title"]].drop_duplicates().itertuples(index=False)
    ):
        line = [Cell(row), Cell(phase), Cell(str(title))]
        for column in columns:
            cell, mine = known.get((row, phase, row_id, column)), ours.get((row, phase, column))
            gap = "" if cell is None or mine is None else f"ours {signed(mine - cell.value)}"
            line.append(Cell() if cell is None else Cell(str(cell.text), float(cell.value), gap))
        body.append(line)
    return Grid(name, ["method", "phase", "published", *columns], body, cells.map(in_csv).to_csv(index=False), (), 3)


def costs(results: Sequence[Result], where: Places, name: str) -> Grid:
    """A line per row: what its runs trained, stored and took; a phase that runs share counts in each."""
    head = [
        "method",
        "runs",
        "phases",
        "epochs",
        "parameters",
        "head",
        "stored bytes",
        "peak memory",
        "seconds",
        "images/s",
    ]
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(where[result.key][0], []).append(result)
    body, lines = [], []
    for row, runs in sorted(rows.items()):
        tuned = [run.num_tunable for run in runs]
        stored = [run.stored_bytes for run in runs]
        seconds = [run.seconds for run in runs]
        rates = [rate for run in runs if (rate := _rate(run.phases)) is not None]
        counts = [[len(run.phases) for run in runs], [run.epochs for run in runs]]
        heads = [run.tested[-1].num_head for run in runs]
        ends = [(min(values), max(values)) for values in (*counts, tuned, heads, stored)]
        peaks = [peak for run in runs for phase in run.phases if (peak := getattr(phase, "peak_memory", None))]
        peak = Cell(size(max(peaks)), max(peaks)) if peaks else Cell()
        numbers = [Cell(str(len(runs)), len(runs)), *map(_range, ends), peak, _spread(seconds), _spread(rates)]
        body.append([Cell(row), *numbers])
        means = [statistics.fmean(values) if values else None for values in (seconds, rates)]
        lines.append(
            [
                row,
                len(runs),
                *(f"{low}..{high}" if low != high else low for low, high in ends),
                max(peaks, default=None),
                *means,
            ]
        )
    kept = [place for place in range(len(head)) if any(line[place].text for line in body)]
    shown = [[line[place] for place in kept] for line in body]
    return Grid(name, [head[place] for place in kept], shown, to_csv(head, lines))


def runs(results: Sequence[Result], name: str) -> Grid:
    """A line per run."""
    num = max(len(result.tested) for result in results)
    phases = [f"P{number}" for number in range(1, num + 1)]
    head = [
        "experiment",
        "method",
        "task",
        "variant",
        "seed",
        *phases,
        "seconds",
        "test images",
        "finished",
        "code",
        "run",
    ]
    body, lines = [], []
    for result in results:
        key, values = result.key, [phase.accuracy for phase in result.tested]
        values += [None] * (num - len(values))
        seconds, images = result.seconds, result.phases[-1].num_test
        names = [key.name, key.method, key.dataset, key.variant]
        tail = [result.created[:16].replace("T", " "), commit(result), result.fingerprint]
        numbers = [cell_of(v) if isinstance(v, int) else Cell("" if v is None else f"{v:.2f}", v) for v in values]
        body.append(
            [
                *map(Cell, names),
                cell_of(key.seed),
                *numbers,
                Cell(f"{seconds:,.0f}", seconds),
                cell_of(images),
                *map(Cell, tail),
            ]
        )
        lines.append([*names, key.seed, *values, seconds, images, *tail])
    return Grid(name, head, body, to_csv(head, lines), (), 4)


def heads(phase: PhaseResult, name: str) -> Grid:
    """Scores and masks of one phase: a line per projection and head."""
    head = ["stage", "block", "projection", "head", "score", "active"]
    lines = [
        [row["stage"], row["block"], row["proj"], number, row["score"][number] if row["score"] else None, active]
        for row in phase.masks
        for number, active in enumerate(row["active"])
    ]
    return plain(name, head, lines, 0)


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
    return _HASH.sub(lambda found: found[0][:_SHORT], text)


def size(num_bytes: float) -> str:
    """Bytes as B, KiB or MiB, to three digits or whole."""
    units = ["B", "KiB", "MiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        del units[0]
    return f"{num_bytes:,.0f} {units[0]}" if num_bytes >= 100 else f"{num_bytes:.3g} {units[0]}"


def cell_of(value: Any) -> Cell:
    """A value as it is; empty where there is none."""
    if value is None or value != value:
        return Cell()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.5g}", value)


def _mean(cell: Any, sign: bool = False, is_best: bool = False) -> Cell:
    """Mean, deviation and n of a cell; empty where there is none."""
    if cell is None or pd.isna(cell.mean):
        return Cell()
    deviation = "" if cell.n < 2 or pd.isna(cell.std) else f"\u00b1 {cell.std:.2f} "
    mark = "best" if is_best else _sign(cell.mean) if sign else ""
    return Cell(signed(cell.mean) if sign else f"{cell.mean:.2f}", float(cell.mean), f"{deviation}({cell.n})", mark)


def _sign(value: float) -> str:
    return "gain" if value > 0 else "loss" if value < 0 else ""


def signed(value: float) -> str:
    """Two digits and the sign, the minus as long as the plus; zero has none."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\u2212")


def _range(ends: tuple[int, int]) -> Cell:
    low, high = ends
    return Cell(f"{low:,}" if low == high else f"{low:,} \u2013 {high:,}", high)


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return Cell()
    mean = statistics.fmean(values)
    deviation = f"\u00b1 {statistics.stdev(values):,.1f}" if len(values) > 1 else ""
    return Cell(f"{mean:,.1f}", mean, deviation)


def _rate(phases: Sequence[PhaseResult]) -> float | None:
    """Images per second over all phases that know theirs."""
    known = [(p.images_per_second, p.seconds) for p in phases if p.images_per_second is not None]
    total = sum(seconds for _, seconds in known)
    return sum(rate * seconds for rate, seconds in known) / total if total else None
