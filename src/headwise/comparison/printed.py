"""Rows of the papers' own tables, and which of our results may stand beside them. Standard library only.

The rows are in ``paper/published_results.csv`` as they were printed; ``paper/rows.csv`` says which methods they are.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from headwise.comparison.averages import averages
from headwise.errors import ConfigError, suggest
from headwise.protocol.presets import POSSIBLY_TUNED
from headwise.results.fingerprint import at
from headwise.results.records import GROUP_SIZES, PhaseResult, Result

BACKBONES = {
    "ViT-B/16 IN-21k": "vit_base_patch16_224.orig_in21k",
    "Swin-B IN-21k": "swin_base_patch4_window7_224.ms_in22k",
}
"""What the papers call their networks, and timm's name with its tag."""
IMG_SIZE = 224
LOSSY = "lossy"
"""Label of results on JPEG copies of lossless images, and what ``paper/protocols.csv`` calls such images."""
SYNTHETIC = "synthetic"
"""Label of results on drawn images, which no paper used."""
HARMLESS = ("TEST-SELECTED", POSSIBLY_TUNED)
"""Labels that do not forbid a comparison: published numbers were chosen like that, or may have been."""
MEANS = ("mean_natural", "mean_specialized", "mean_structured", "mean_groups", "mean_19")
_PRINTED_MEANS = {"mean_groups": "group_mean", "mean_19": "overall_mean"}
_COMPLETED = "_completed"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published row.

    Attributes:
        method: as the paper calls it.
        paper, table: where it is printed.
        backbone: a key of `BACKBONES`.
        size: trained parameters as printed, with their unit; empty where lost.
        cells: column -> accuracy as printed, of tasks and of `MEANS`. A lost cell is absent.
        computed: means that were not printed but computed from a row without gaps.
        filled: where cells come from that the paper's own text lost; empty where none was filled.
        notes: on single cells.
        ours: (label, tested phase) of the methods that it is.
        where: fields of that phase's method -> values that they may have.
    """

    id: str
    method: str
    paper: str
    table: str
    backbone: str
    size: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    filled: str = ""
    notes: str = ""
    ours: tuple[tuple[str, str], ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.method}, {self.paper} {self.table}"

    def text(self, column: str) -> str:
        """A cell as printed, with ``*`` if it was computed; empty where it was lost."""
        return self.cells.get(column, "") + ("*" if column in self.computed else "")


@functools.cache
def rows() -> dict[str, Row]:
    """All rows by id."""
    mapping = {line["row_id"]: line for line in read("rows.csv")}
    return {line["row_id"]: _row(line, mapping.get(line["row_id"].removesuffix(_COMPLETED))) for line in _results()}


def find(row_id: str) -> Row:
    """Return the row of an id; an unknown one is refused."""
    if row_id not in rows():
        raise ConfigError(f"unknown published row {row_id!r}{suggest(row_id, rows())}")
    return rows()[row_id]


@functools.cache
def of_method(label: str) -> tuple[Row, ...]:
    """Rows that are this method, by its label; the completed one where a row has gaps."""
    mine = [row for row in rows().values() if label in {name for name, _ in row.ours}]
    return tuple(row for row in mine if row.id + _COMPLETED not in rows())


def column_of(result: Result) -> str | None:
    """The papers' column for a result's task, found through its aliases; None for a task that is not VTAB's."""
    if result.group not in GROUP_SIZES:
        return None
    task = result.task
    names = (result.key.dataset, *(str(name) for name in task.get("aliases") or ()))
    return next((name for name in names if name in tasks()), None)


@functools.cache
def tasks() -> dict[str, str]:
    """The papers' task columns in their order, with their groups."""
    header = list(_results()[0])
    # the tasks follow the sizes, group by group
    start = header.index("params_unit") + 1
    groups = [name for name, size in GROUP_SIZES.items() for _ in range(size)]
    return dict(zip(header[start : start + len(groups)], groups, strict=True))


def grouped(values: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the values of the papers' tasks by group, in the papers' order."""
    groups: dict[str, list[float]] = {}
    for task, group in tasks().items():
        if task in values:
            groups.setdefault(group, []).append(values[task])
    return groups


def obstacles(result: Result, row: Row, phase: PhaseResult) -> list[str]:
    """Say what forbids to set a phase's number beside a published row; empty if nothing does."""
    reasons = [label for label in result.labels if label not in (*HARMLESS, LOSSY)]
    if LOSSY in result.labels and (images := measured(row, "data").get("value", "")) != LOSSY:
        reasons.append(f"{LOSSY}, there {images or 'not known'}")
    backbone = result.identity.get("backbone")
    backbone = backbone if isinstance(backbone, Mapping) else {}
    needed = BACKBONES[row.backbone]
    if (name := backbone.get("timm_name")) != needed:
        reasons.append(f"weights {name or 'not recorded'}, there {needed}")
    elif (side := backbone.get("img_size") or at(result.provenance, "network.img_size")) != IMG_SIZE:
        reasons.append(f"images of {side} px, there {IMG_SIZE}")
    for key, allowed in row.where.items():
        if (value := _plain(at(phase.method, key))) not in allowed:
            reasons.append(f"{key} {value}, there {' or '.join(allowed)}")
    return reasons


def measured(row: Row, topic: str) -> Mapping[str, str]:
    """How a row was measured: the first line of ``paper/protocols.csv`` that speaks of it and the topic, or nothing."""
    for line in read("protocols.csv"):
        if line["topic"] == topic and any(fnmatchcase(row.id, pattern) for pattern in line["rows"].split()):
            return line
    return {}


def phases_of(result: Result, row: Row) -> list[tuple[str, PhaseResult]]:
    """The tested phases of a result that a row is, with their names, ``P1`` or ``P2``."""
    numbered = [(f"P{number}", phase) for number, phase in enumerate(result.tested, start=1)]
    return [(name, phase) for name, phase in numbered if (result.key.method, name) in row.ours]


def caption(ids: Iterable[str]) -> list[str]:
    """Sentences that must stand where published rows do."""
    notes = [
        "Published rows are copied from the papers and were measured in their authors' ways; scripts/compare.py lists "
        "what differs. A cell that was lost stays empty; * marks a mean that was computed from the printed cells."
    ]
    if filled := sorted(row_id for row_id in set(ids) if rows()[row_id].filled):
        notes.append(f"Rows completed from other sources than the paper's own table: {', '.join(filled)}.")
    return notes


def inputs(results: Iterable[Result], ids: Iterable[str]) -> list[str]:
    """Sentences on the images and weights of results and of the published rows beside them."""
    results, notes = list(results), []
    copies = {row_id: measured(rows()[row_id], "data") for row_id in sorted(set(ids))}
    if theirs := {row_id: line for row_id, line in copies.items() if line.get("value") == LOSSY}:
        ours = sorted({LOSSY if LOSSY in result.labels else "lossless" for result in results})
        basis = ", ".join(sorted({line["basis"] for line in theirs.values()}))
        notes.append(
            f"Measured on JPEG copies of lossless images ({basis}): {', '.join(theirs)}; the results beside them: "
            f"{' and '.join(ours)}."
        )
    weights = [result.provenance.get("weights") for result in results]
    stated = {str(part["stated"]) for part in weights if isinstance(part, Mapping) and part.get("stated")}
    if stated:
        notes.append(f"That the weights are the papers' is not verified but said: {', '.join(sorted(stated))}.")
    return notes


def read(name: str) -> list[dict[str, str]]:
    """The lines of one of the papers' data files."""
    file = importlib.resources.files("headwise") / "paper" / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@functools.cache
def _results() -> list[dict[str, str]]:
    return read("published_results.csv")


def _row(line: Mapping[str, str], mapped: Mapping[str, str] | None) -> Row:
    cells = {task: line[task] for task in tasks() if line[task]}
    printed = {mean: line[_PRINTED_MEANS.get(mean, mean)] for mean in MEANS}
    # Numbers as printed, so that a mean of ours rests on nothing that a reader cannot see in the paper.
    means = averages(grouped({task: float(text) for task, text in cells.items()}))
    computed = {mean: f"{value:.2f}" for mean, value in means.items() if not printed[mean]}
    cells |= {mean: text for mean in MEANS if (text := printed[mean] or computed.get(mean, ""))}
    unit = line["params_unit"].partition(" ")[0]
    ours = [place.rpartition(":") for place in (mapped or {}).get("ours", "").split()]
    where = [term.partition("=") for term in (mapped or {}).get("where", "").split()]
    return Row(
        id=line["row_id"],
        method=line["method"],
        paper=line["source_paper"].partition(" (")[0],
        table=line["source_table"],
        backbone=line["backbone"],
        size=f"{line['params']} {unit}".strip() if line["params"] else "",
        cells=cells,
        computed=frozenset(computed),
        filled=line["fill_source"],
        notes=line["notes"],
        ours=tuple((label, phase) for label, _, phase in ours),
        where={key: tuple(values.split("|")) for key, _, values in where},
    )


def _plain(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower()
