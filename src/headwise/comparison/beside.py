"""Published rows beside ours: only where the two may be compared, or apart and with the reason. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from headwise.comparison import printed
from headwise.comparison.comparable import Places, by_row
from headwise.comparison.printed import MEANS
from headwise.results.fingerprint import few
from headwise.results.records import Result

PUBLISHED = ["row", "phase", "row_id", "title", "size", "column", "text", "value", "comparable"]
SHOW = ("auto", "always", "never")
"""``auto``: beside results that may be compared; ``always``: the others as well, apart; ``never``: none."""
WHOLE = ("mean_19", "mean_groups")

Columns = dict[str, tuple[str, list[str]]]
"""By column of ours: the papers' column, and what forbids to set it beside ours."""


def beside(
    results: Sequence[Result], where: Places, cells: pd.DataFrame, show: str
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Find the cells of published rows that belong to results.

    Args:
        cells: of the table; averages are taken where it has them.
    Returns:
        Lines of the columns `PUBLISHED`; captions for the rows beside ours; captions for those that may not be.
    """
    if show == "never":
        return pd.DataFrame(columns=PUBLISHED), [], []
    mine = by_row(results, where)
    averages = cells[cells["group"] == "average"]
    have = set(averages[["row", "phase", "column"]].itertuples(index=False, name=None))
    lines: list[tuple[Any, ...]] = []
    refused: dict[str, set[str]] = {}
    for row, members in sorted(mine.items()):
        for there in printed.of_method(members[0].key.method):
            for phase, belonging in _columns(members, where, there).items():
                means = {mean: (mean, _reasons(belonging, mean)) for mean in MEANS if (row, phase, mean) in have}
                for column, (key, reasons) in {**belonging, **means}.items():
                    if text := there.text(key):
                        facts = (row, phase, there.id, there.title, there.size, column, text)
                        lines.append((*facts, float(there.cells[key]), not reasons))
                        for reason in reasons:
                            refused.setdefault(reason, set()).add(row)
    every = pd.DataFrame(lines, columns=PUBLISHED).astype({"comparable": bool})
    fitting, rest = every[every["comparable"]], every[~every["comparable"]]
    notes = printed.caption(fitting["row_id"]) if len(fitting) else []
    paired = [result for row, members in mine.items() if row in set(fitting["row"]) for result in members]
    notes += printed.inputs(paired, fitting["row_id"])
    if show == "always" and len(rest):
        why = _why(refused, set(rest["row"]))
        apart = f"NOT COMPARABLE with the results above, shown because it was asked for: {why}."
        return every, notes, [apart, *printed.caption(rest["row_id"])]
    if unmatched := set(rest["row"]) - set(fitting["row"]):
        names, why = ", ".join(sorted(unmatched)), _why(refused, unmatched)
        notes.append(f"No published row stands beside {names}: {why}. --published always shows them apart.")
    return fitting.reset_index(drop=True), notes, []


def _why(refused: Mapping[str, set[str]], rows: set[str]) -> str:
    """Reasons that concern some of `rows`; their names where it is not all of them."""
    concerning = {reason: sorted(concerned & rows) for reason, concerned in refused.items() if concerned & rows}
    parts = [
        reason if len(mine) == len(rows) else f"{reason} ({', '.join(mine)})" for reason, mine in concerning.items()
    ]
    return few(parts, 4)


def _columns(members: Sequence[Result], where: Places, there: printed.Row) -> dict[str, Columns]:
    """By tested phase."""
    columns: dict[str, Columns] = {}
    for result in members:
        if (task := printed.column_of(result)) is None:
            continue
        for name, phase in printed.phases_of(result, there):
            reasons = columns.setdefault(name, {}).setdefault(where[result.key][1], (task, []))[1]
            reasons += [reason for reason in printed.obstacles(result, there, phase) if reason not in reasons]
    return columns


def _reasons(columns: Columns, mean: str) -> list[str]:
    """What forbids an average: all that forbids one of its tasks."""
    belongs = printed.tasks()
    parts = [reasons for task, reasons in columns.values() if mean in WHOLE or f"mean_{belongs[task]}" == mean]
    return list(dict.fromkeys(reason for reasons in parts for reason in reasons))
