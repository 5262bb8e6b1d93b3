"""Tables as Markdown, LaTeX, CSV and JSON. Never imports torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from headwise.comparison.cells import in_csv, in_markdown, one_line, pipes
from headwise.comparison.tables import Table
from headwise.errors import ConfigError, suggest
from headwise.report.layout import (
    COSTS,
    RATIO_NOTE,
    WIDE,
    Layout,
    Line,
    Lines,
    accuracies,
    apart,
    layout,
    paired,
    paired_note,
    ratios,
)
from headwise.results.records import FEWSHOT, GROUP_SIZES

BEST, SECOND = 1, 2
TIDY = ["table", "kind", "method", "phase", "column", "group", "mean", "std", "n"]
TIDY += ["low", "high", "wins", "ties", "losses", "text"]


def render(tables: Sequence[Table], form: str) -> str:
    """Return all tables as text of one of `FORMATS`.

    Raises:
        ConfigError: for an unknown format.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown table format {form!r}{suggest(form, FORMATS)}")
    return FORMATS[form](tables)


def markdown(tables: Sequence[Table]) -> str:
    """One heading, caption and table each; then paired differences, ratios, and published rows kept apart."""
    parts = []
    for table in tables:
        title = in_markdown(table.title)
        parts += [f"## {title}\n", f"{_bullets(table.notes)}\n", _pipes(*accuracies(table), num_left=1)]
        if len(table.paired):
            notes = [paired_note(table), *table.answers]
            parts += [f"### {title}: paired differences\n", f"{_bullets(notes)}\n"]
            parts.append(_pipes(*paired(table), num_left=2))
        if len(table.ratios):
            parts += [f"### {title}: ratios to no head off\n", f"{_bullets([RATIO_NOTE])}\n"]
            parts.append(_pipes(*ratios(table), num_left=1))
        if table.apart:
            parts += [f"### {title}: published rows, apart\n", f"{_bullets(table.apart)}\n"]
            parts.append(_pipes(*apart(table), num_left=2))
    return "\n".join(parts)


def latex(tables: Sequence[Table]) -> str:
    r"""A booktabs ``table`` each, the best of a column bold, the second underlined; one more for paired differences.

    Needs the packages booktabs and graphicx (wide tables are shrunk to the page).
    """
    parts = [r"% \usepackage{booktabs,graphicx}"]
    for table in tables:
        caption = f"{table.title}. {' '.join(table.notes)} Best of ours bold, second underlined."
        parts.append(_tabular(caption, *_decorated(layout(table)), num_left=1))
        if len(table.paired):
            caption = f"{table.title}: paired differences. {' '.join([paired_note(table), *table.answers])}"
            parts.append(_tabular(caption, *_escaped(paired(table)), num_left=2))
        if len(table.ratios):
            caption = f"{table.title}: ratios to no head off. {RATIO_NOTE}"
            parts.append(_tabular(caption, *_escaped(ratios(table)), num_left=1))
        if table.apart:
            caption = f"{table.title}: published rows, apart. {' '.join(table.apart)}"
            parts.append(_tabular(caption, *_escaped(apart(table)), num_left=2))
    return "\n".join(parts)


def tidy_csv(tables: Sequence[Table]) -> str:
    """One line per number, unrounded, of the columns `TIDY`.

    ``kind`` is accuracy, paired, ratio (to no head off), contrast (all tasks; n pairs, low and high the interval), cost
    (low and high over the tasks), published (``method`` is the row's id, ``text`` as printed; ``published, apart``
    where ours may not be compared) or note (``text``, a sentence of the caption).
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
    for cost in _records(table.costs):
        for name in COSTS:
            low, high = cost[name]
            lines.append({"kind": "cost", "row": cost["row"], "column": name, "low": low, "high": high})
    for cell in _records(table.published):
        kind = "published" if cell["comparable"] else "published, apart"
        lines.append({**cell, "kind": kind, "row": cell["row_id"], "mean": cell["value"]})
    return lines + [{"kind": "note", "text": note} for note in (*table.notes, *table.answers, *table.apart)]


def plain_json(tables: Sequence[Table]) -> str:
    """Everything, unrounded: the fields of each `headwise.comparison.tables.Table`; ratios where there are any."""
    names = ("title", "notes", "cells", "costs", "paired", "contrasts", "answers", "published", "apart", "ratios")
    plain = [
        {
            name: _records(part) if isinstance(part, pd.DataFrame) else part
            for name in names
            if len(part := getattr(table, name)) or name != "ratios"
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
SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Of a file, and the format that it is given."""


def _records(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines as plain values, what is undefined as None; ``row`` keeps its place first."""
    columns = list(cells.columns)
    return [
        {name: None if isinstance(v, float) and v != v else v for name, v in zip(columns, line, strict=True)}
        for line in cells.astype(object).values.tolist()
    ]


def _bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {in_markdown(note)}" for note in notes)


def _pipes(head: Sequence[str], body: Sequence[Sequence[str]], num_left: int) -> str:
    return "\n".join(pipes(head, body, num_left)) + "\n"


def _decorated(found: Layout) -> tuple[list[str], list[list[str]], str]:
    """Head and body in LaTeX, best and second marked, and the line over the head that names the groups."""
    body = [
        [_escape(n.label), *map(_escape, n.costs), *(_mark(n, place) for place in found.columns)] for n in found.lines
    ]
    names = {**{name: name for name in GROUP_SIZES}, FEWSHOT: "few-shot", "average": "means"}
    spans: list[list[Any]] = []
    for place in found.columns:
        group = names.get(found.groups[place], "")
        if spans and spans[-1][0] == group:
            spans[-1][1] += 1
        else:
            spans.append([group, 1])
    start, rules, cells = len(COSTS) + 2, [], [""] * (len(COSTS) + 1)
    for group, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{group}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    over = f"{' & '.join(cells)} \\\\ {''.join(rules)}" if rules else ""
    return [_escape(name) for name in found.head], body, over


def _mark(line: Line, place: tuple[str, str]) -> str:
    text = _escape(line.cells.get(place, ""))
    wrap = {BEST: r"\textbf", SECOND: r"\underline"}.get(line.ranks.get(place, 0))
    return f"{wrap}{{{text}}}" if wrap else text


def _escaped(lines: Lines) -> tuple[list[str], list[list[str]], str]:
    head, body = lines
    return [_escape(name) for name in head], [[_escape(cell) for cell in line] for line in body], ""


def _tabular(caption: str, head: Sequence[str], body: Sequence[Sequence[str]], over: str, num_left: int) -> str:
    lines = [" & ".join(line) + r" \\" for line in (head, *body)]
    align = "l" * num_left + "r" * (len(head) - num_left)
    wide = len(head) > WIDE
    opening = [
        r"\begin{table}",
        rf"\caption{{{_escape(caption)}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
    ]
    opening += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", *([over] if over else [])]
    closing = [r"\bottomrule", r"\end{tabular}" + ("}" if wide else ""), r"\end{table}", ""]
    return "\n".join([*opening, lines[0], r"\midrule", *lines[1:], *closing])


_LATEX = {"\\": r"\textbackslash{}", "\u00b1": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


_MINUS = re.compile(r"(?<![\w.-])-(?=\d)|(?<= )-(?= )")
"""Of a number or between two names, and not in a name."""


def _escape(text: str) -> str:
    plain = "".join(_LATEX.get(sign, sign) for sign in one_line(text))
    plain = f"{{{plain[0]}}}{plain[1:]}" if plain.startswith(("[", "*")) else plain  # an option of the line before
    return _MINUS.sub("$-$", plain.replace("--", "-{}-"))
