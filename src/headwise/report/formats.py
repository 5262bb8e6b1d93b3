"""Tables as Markdown, LaTeX, CSV and JSON. Never imports torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from headwise.comparison.cells import bullets, in_csv, in_markdown, one_line, pipes
from headwise.comparison.costs import COSTS
from headwise.comparison.mechanism import MEASURES, lies
from headwise.comparison.tables import Table
from headwise.errors import ConfigError, suggest
from headwise.report.grid import BEST, SECOND, Cell, Grid
from headwise.report.layout import parts
from headwise.report.selection import Selection

TIDY = ["table", "kind", "method", "phase", "column", "group", "mean", "std", "n"]
TIDY += ["low", "high", "wins", "ties", "losses", "p", "holm", "text"]


def render(tables: Sequence[Table], form: str, shown: Selection | None = None) -> str:
    """Return all tables as text of one of `FORMATS`; of files of data nothing can be left out.

    Raises:
        ConfigError: for an unknown format, or a selection of what there is not.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown table format {form!r}{suggest(form, FORMATS)}")
    if form in DATA:
        if shown is not None:
            raise ConfigError(f"rows, columns, names and a short caption are for md and latex; {form} holds everything")
        return DATA[form](tables)
    return TEXT[form](tables, shown or Selection())


def notes_of(tables: Sequence[Table], shown: Selection) -> str:
    """Return what the captions of a paper's tables leave out, as Markdown; nothing of tables that are not shown."""
    return "\n\n".join(
        f"## {in_markdown(table.title)}\n\n{bullets([*table.notes, *table.answers])}"
        for table, _ in _shown(tables, shown)
    )


def left_out(tables: Sequence[Table], shown: Selection) -> list[str]:
    """Titles of the tables that have nothing of what is to be shown."""
    there = [table.title for table, _ in _shown(tables, shown)]
    return [table.title for table in tables if table.title not in there]


Parts = list[tuple[Grid, Sequence[str]]]


def _shown(tables: Sequence[Table], shown: Selection) -> list[tuple[Table, Parts]]:
    """The tables that have what is to be shown, with the grids of each and the sentences over them."""
    arranged = [(table, parts(table)) for table in tables]
    shown.check([grids[0][0] for _, grids in arranged])
    chosen = [(table, _parts(grids, shown)) for table, grids in arranged]
    return [(table, grids) for table, grids in chosen if grids]


def _parts(grids: Parts, shown: Selection) -> Parts:
    (whole, notes), *rest = grids
    main = shown.of(whole)
    if main is None:
        return []
    if not shown.is_short:
        return [(main, notes), *rest]
    # what an empty cell means is said with the notes: in a paper it is a phase that a method does not have
    captions = [note.partition(" An empty cell")[0] for note in notes if note.startswith("Test accuracy in percent")]
    return [(main, captions)]


def markdown(tables: Sequence[Table], shown: Selection) -> str:
    """One heading, caption and table each; then paired differences, ratios, and published rows kept apart."""
    sections = []
    for table, grids in _shown(tables, shown):
        for grid, notes in grids:
            heading = f"### {table.title}: {grid.name}" if grid.name else f"## {table.title}"
            lines = pipes(grid.head, [list(map(str, line)) for line in grid.body], grid.num_left)
            sections.append("\n".join([in_markdown(heading), "", bullets(notes), "", *lines, ""]))
    return "\n".join(sections)


def latex(tables: Sequence[Table], shown: Selection) -> str:
    r"""A booktabs ``table`` each, the best of a column bold, the second underlined; one more for paired differences.

    Needs the packages booktabs and graphicx (wide tables are shrunk to the page).
    """
    sections = [r"% \usepackage{booktabs,graphicx}"]
    for table, grids in _shown(tables, shown):
        for grid, notes in grids:
            title = f"{table.title}: {grid.name}" if grid.name else table.title
            marked = "" if grid.name else " Best of ours bold, second underlined."
            sections.append(_tabular(f"{title}. {' '.join(notes)}{marked}", grid))
    return "\n".join(sections)


def tidy_csv(tables: Sequence[Table]) -> str:
    """One line per number, unrounded, of the columns `TIDY`.

    ``kind`` is accuracy, paired, ratio (to no head off), contrast (all tasks; n pairs, low and high the interval), pays
    with what it is of (group, interaction, improvement, task; p, and holm over the tasks), mechanism with its measure
    (mean over n runs), cost (low and high over the tasks), published (``method`` is the row's id, ``text`` as printed;
    ``published, apart`` where ours may not be compared) or note (``text``, a sentence of the caption).
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, TIDY, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for record in _tidy(table):
            named = {name: record[name] for name in TIDY if record.get(name) is not None}
            line = {"table": table.title, "method": record.get("row", ""), **named}
            writer.writerow({name: in_csv(value) for name, value in line.items()})
    return out.getvalue()


def _tidy(table: Table) -> list[dict[str, Any]]:
    lines = [{"kind": "accuracy", **cell} for cell in _records(table.cells)]
    lines += [{"kind": "paired", **cell} for cell in _records(table.paired)]
    lines += [{"kind": "ratio", **cell} for cell in _records(table.ratios)]
    lines += [{"kind": "contrast", **cell, "n": cell["pairs"]} for cell in _records(table.contrasts)]
    lines += [{**cell, "kind": f"pays, {cell['kind']}", "n": cell["pairs"]} for cell in _records(table.pays)]
    for mean in _records(lies(table.mechanism)):
        names = {"row": mean["row"], "column": mean["column"], "n": mean["n"]}
        lines += [{"kind": f"mechanism, {name}", **names, "mean": mean[name]} for name in ("gain", *MEASURES)]
    for cost in _records(table.costs):
        for name in COSTS:
            low, high = cost[name]
            lines.append({"kind": "cost", "row": cost["row"], "column": name, "low": low, "high": high})
    for cell in _records(table.published):
        kind = "published" if cell["comparable"] else "published, apart"
        lines.append({**cell, "kind": kind, "row": cell["row_id"], "mean": cell["value"]})
    return lines + [{"kind": "note", "text": note} for note in (*table.notes, *table.answers, *table.apart)]


def plain_json(tables: Sequence[Table]) -> str:
    """Everything, unrounded: the fields of each `headwise.comparison.tables.Table`; the last three if any."""
    optional = ("ratios", "pays", "mechanism")
    names = ("title", "notes", "cells", "costs", "paired", "contrasts", "answers", "published", "apart", *optional)
    plain = [
        {
            name: _records(part) if isinstance(part, pd.DataFrame) else part
            for name in names
            if len(part := getattr(table, name)) or name not in optional
        }
        for table in tables
    ]
    return json.dumps({"tables": plain}, indent=2, allow_nan=False) + "\n"


TEXT: dict[str, Callable[[Sequence[Table], Selection], str]] = {"md": markdown, "latex": latex}
DATA: dict[str, Callable[[Sequence[Table]], str]] = {"csv": tidy_csv, "json": plain_json}
FORMATS = (*TEXT, *DATA)
SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Of a file, and the format that it is given."""


def _records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines as plain values, what is undefined as None; ``row`` keeps its place first."""
    columns = list(cells.columns)
    return [
        {name: None if isinstance(v, float) and v != v else v for name, v in zip(columns, line, strict=True)}
        for line in cells.astype(object).values.tolist()
    ]


def _tabular(caption: str, grid: Grid) -> str:
    head = [_escape(name) for name in grid.head]
    lines = [" & ".join(line) + r" \\" for line in (head, *([_in_latex(cell) for cell in line] for line in grid.body))]
    align = "l" * grid.num_left + "r" * (len(head) - grid.num_left)
    opening = [
        r"\begin{table}",
        rf"\caption{{{_escape(caption)}}}",
        r"\centering",
        # no wider than the page, and no narrower table made larger
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
    ]
    opening += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", *_over(grid.spans)]
    closing = [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join([*opening, lines[0], r"\midrule", *lines[1:], *closing])


def _over(spans: Sequence[tuple[str, int]]) -> list[str]:
    """The line over the head that names groups of columns, with a rule below each; none without a group."""
    start, cells, rules = 1, [], []
    for place, (group, width) in enumerate(spans):
        # The columns before the first group have no cell in common: booktabs would centre an empty one over them.
        cells += [rf"\multicolumn{{{width}}}{{c}}{{{group}}}"] if place else [""] * width
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    return [f"{' & '.join(cells)} \\\\ {''.join(rules)}"] if rules else []


def _in_latex(cell: Cell) -> str:
    wrap = {BEST: r"\textbf", SECOND: r"\underline"}.get(cell.mark)
    return f"{wrap}{{{_escape(str(cell))}}}" if wrap else _escape(str(cell))


_LATEX = {"\\": r"\textbackslash{}", "\u00b1": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


_MINUS = re.compile(r"(?<![\w.-])-(?=\d)|(?<= )-(?= )")
"""Of a number or between two names, and not in a name."""


def _escape(text: str) -> str:
    plain = "".join(_LATEX.get(sign, sign) for sign in one_line(text))
    plain = f"{{{plain[0]}}}{plain[1:]}" if plain.startswith(("[", "*")) else plain  # an option of the line before
    return _MINUS.sub("$-$", plain.replace("--", "-{}-"))
