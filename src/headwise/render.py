"""Tables as Markdown, LaTeX, CSV and JSON. Never imports torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from headwise.errors import ConfigError, suggest
from headwise.tables import Table

Lines = tuple[list[str], list[list[str]]]
COSTS = {"parameters": "parameters", "head": "head", "stored_bytes": "stored bytes", "epochs": "epochs"}
PAIRED = (
    "Percentage points, formed seed by seed: the second phase minus its own first phase (P1), minus the first method "
    "alone, trained for the epochs of both phases (longer P1), and minus plain LoRA of equal size after the same first "
    "phase (equal-size LoRA). Mean \u00b1 sample standard deviation, n in brackets. An empty cell is a run that is "
    "missing."
)


def render(tables: Sequence[Table], form: str) -> str:
    """Return all tables as text of one of `FORMATS`.

    Raises:
        ConfigError: for an unknown format.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown table format {form!r}{suggest(form, FORMATS)}")
    return FORMATS[form](tables)


def accuracies(table: Table) -> Lines:
    """Head and body of the main part: a line per row; costs, then a column per task and phase."""
    rows, columns, text = _grid(table.cells)
    costs = table.costs.set_index("row")
    single = {phase for _, phase in columns} == {"P1"}
    head = ["method", *COSTS.values(), *(column if single else f"{column} {phase}" for column, phase in columns)]
    body = [
        [row, *(_range(costs.loc[row, name]) for name in COSTS), *(text.get((row, *pair), "") for pair in columns)]
        for row in rows
    ]
    return head, body


def paired(table: Table) -> Lines:
    """Head and body of the paired differences: a line per row and kind of difference, a column per task."""
    rows, columns, text = _grid(table.paired)
    names = list(dict.fromkeys(column for column, _ in columns))
    kinds = sorted({phase for _, phase in columns}, reverse=True)
    body = [[row, kind, *(text.get((row, name, kind), "") for name in names)] for row in rows for kind in kinds]
    return ["method", "difference", *names], body


def _grid(cells: pd.DataFrame) -> tuple[list[str], list[tuple[str, str]], dict[tuple[str, str, str], str]]:
    """Rows, (column, phase) pairs in their order, and the text of each cell that exists."""
    columns = list(dict.fromkeys(cells["column"]))
    pairs = sorted(set(zip(cells["column"], cells["phase"], strict=True)), key=lambda p: (columns.index(p[0]), p[1]))
    return sorted(set(cells["row"])), pairs, {(c.row, c.column, c.phase): _cell(c) for c in cells.itertuples()}


def markdown(tables: Sequence[Table]) -> str:
    """One heading, caption and table each; then the paired differences."""
    parts = []
    for table in tables:
        notes = "\n".join(f"- {note}" for note in table.notes)
        parts += [f"## {table.title}\n", f"{notes}\n", _pipes(*accuracies(table), num_left=1)]
        if len(table.paired):
            parts += [f"### {table.title}: paired differences\n", f"{PAIRED}\n", _pipes(*paired(table), num_left=2)]
    return "\n".join(parts)


def latex(tables: Sequence[Table]) -> str:
    """A booktabs ``table`` each, and one more for the paired differences; the notes are the caption."""
    parts = []
    for table in tables:
        parts.append(_tabular(f"{table.title}. {' '.join(table.notes)}", *accuracies(table), num_left=1))
        if len(table.paired):
            parts.append(_tabular(f"{table.title}: paired differences. {PAIRED}", *paired(table), num_left=2))
    return "\n".join(parts)


def tidy_csv(tables: Sequence[Table]) -> str:
    """One line per cell: ``table, kind, method, phase, column, group, mean, std, n``, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "kind", "method", "phase", "column", "group", "mean", "std", "n"])
    for table in tables:
        for kind, cells in (("accuracy", table.cells), ("paired", table.paired)):
            for cell in _records(cells):
                writer.writerow([table.title, kind, *("" if value is None else value for value in cell.values())])
    return out.getvalue()


def plain_json(tables: Sequence[Table]) -> str:
    """Everything, unrounded: per table ``title``, ``notes``, ``cells``, ``costs``, ``paired``."""
    plain = [
        {
            "title": table.title,
            "notes": table.notes,
            "cells": _records(table.cells),
            "costs": _records(table.costs),
            "paired": _records(table.paired),
        }
        for table in tables
    ]
    return json.dumps({"tables": plain}, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": tidy_csv,
    "json": plain_json,
}


def _records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines as plain values, what is undefined as None; ``row`` keeps its place first."""
    columns = list(cells.columns)
    return [
        {name: None if isinstance(v, float) and v != v else v for name, v in zip(columns, line, strict=True)}
        for line in cells.astype(object).values.tolist()
    ]


def _cell(cell: Any) -> str:
    sign = "+" if " - " in cell.phase else ""
    deviation = "" if cell.n < 2 else f" \u00b1 {cell.std:.2f}"
    return f"{cell.mean:{sign}.2f}{deviation} ({cell.n})"


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _pipes(head: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    rule = ["---" if place < num_left else "--:" for place in range(len(head))]
    lines = [head, rule, *([cell.replace("|", r"\|") for cell in line] for line in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _tabular(caption: str, head: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    lines = [" & ".join(map(_escape, line)) + r" \\" for line in (head, *body)]
    align = "l" * num_left + "r" * (len(head) - num_left)
    opening = [r"\begin{table}", rf"\caption{{{_escape(caption)}}}", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    return "\n".join(
        [*opening, lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    )


_LATEX = {"\\": r"\textbackslash{}", "\u00b1": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
