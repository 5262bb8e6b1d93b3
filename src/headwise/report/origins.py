"""What results were made with: a table for each part of their provenance. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headwise.comparison.comparable import recorded
from headwise.report.grid import Cell, Grid, cell_of, to_csv
from headwise.report.grids import commit, shortened
from headwise.results.fingerprint import fingerprint
from headwise.results.records import Result

_BESIDE = 4
"""Different values of one part that stand side by side."""


def provenance(results: Sequence[Result]) -> list[tuple[str, Grid]]:
    """What the results were made with, a table each: the different values side by side, or below each other if many."""
    titled = []
    for title, part in PARTS.items():
        values: dict[str, Mapping[str, Any]] = {}
        counts: dict[str, int] = {}
        for result in results:
            value = part(result)
            mark = fingerprint(
                {"task": result.key.dataset, "data": recorded(result, "data")} if title == "Data" else value
            )
            # older records of the same images say less about them: the one that says most stands for all
            values[mark] = max(value, values.get(mark, {}), key=len)
            counts[mark] = counts.get(mark, 0) + 1
        names = list(dict.fromkeys(name for value in values.values() for name in value))
        order = sorted(values, key=lambda mark: -counts[mark])
        lines = [[*(_plain(values[mark].get(name, "")) for name in names), counts[mark]] for mark in order]
        table = to_csv([*names, "runs"], lines)
        name = f"provenance-{title.lower()}"
        if len(values) > _BESIDE:
            body = [[*map(_named, line[:-1]), cell_of(line[-1])] for line in lines]
            titled.append((title, Grid(name, [*names, "runs"], body, table, (), len(names))))
            continue
        across = list(zip(*lines, strict=True))[:-1]
        body = [
            [Cell(field, small="differs" if len(set(map(str, line))) > 1 else ""), *map(_named, line)]
            for field, line in zip(names, across, strict=True)
        ]
        head = ["", *(f"{counts[mark]:,} run{'s' * (counts[mark] > 1)}" for mark in order)]
        titled.append((title, Grid(name, head, body, table, (), len(head))))
    return titled


def _data(result: Result) -> Mapping[str, Any]:
    value = _mapping(result.provenance.get("data", "(not recorded)"))
    left_out = ("labels", "mean", "std", *(name for name, child in value.items() if not child))
    return {"task": result.key.dataset, **{name: child for name, child in value.items() if name not in left_out}}


PARTS: dict[str, Callable[[Result], Mapping[str, Any]]] = {
    "Weights": lambda result: _mapping(recorded(result, "weights")),
    "Data": _data,
    "Protocol": lambda result: _mapping(recorded(result, "protocol")),
    "Software": lambda result: result.versions,
    "Code": lambda result: {"commit": commit(result)},
    "Machine": lambda result: result.machine,
}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"value": str(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(child)}" for name, child in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(child)) for child in value)
    return value


def _named(value: Any) -> Cell:
    """A value of the provenance; of a hash its beginning."""
    return Cell("none" if value is None else shortened(str(value)))
