"""Our numbers beside a published row, and what can explain the gap. Never torch.

How published rows were measured is in ``paper/protocols.csv``, what a difference is worth in ``paper/gaps.csv``, both
with their sources.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwise.comparison import printed
from headwise.comparison.averages import averages
from headwise.comparison.cells import in_markdown, pipes
from headwise.comparison.comparable import ordered, places, settings
from headwise.comparison.costs import in_words
from headwise.comparison.printed import MEANS, Row
from headwise.errors import ConfigError
from headwise.protocol.presets import POSSIBLY_TUNED
from headwise.protocol.recipe import NORMALIZATIONS
from headwise.results.records import PhaseResult, Result

SAME, DIFFERS, UNKNOWN = "same", "differs", "not known"
# far below the distance of any two sets of `NORMALIZATIONS`, which have at most three digits
_CLOSE = 1e-3
_DRAWN = "no part of a gap to photographs can be read from drawn images"


@dataclass(frozen=True)
class ComparedCell:
    """One column of a comparison; accuracies in percent, the difference is ours minus theirs."""

    column: str
    mean: float
    std: float | None
    n: int
    published: str
    difference: float | None


@dataclass(frozen=True)
class Gap:
    """One part of the protocol.

    Attributes:
        topic: a line of ``paper/gaps.csv``.
        ours, theirs: what was done.
        basis: how theirs is known: stated, lineage (the code it builds on), derived; empty where it is not.
        verdict: same, differs, not known.
        typical: what such a difference is worth.
        low, high: the same in points, where sizes were published.
        source: of the size; ``known_from`` that of theirs.
    """

    topic: str
    about: str
    ours: str
    theirs: str
    basis: str
    verdict: str
    typical: str
    low: float | None
    high: float | None
    source: str
    known_from: str


@dataclass(frozen=True)
class Comparison:
    """A row of ours beside a published one.

    Attributes:
        method, phase: our row, and which of its tested phases.
        size: parameters of all phases up to this one, without the head; smallest and largest.
        cells: tasks in the papers' order, then averages.
        obstacles: what forbids to set the two side by side.
    """

    method: str
    phase: str
    row: Row
    size: tuple[int, int]
    cells: list[ComparedCell]
    obstacles: list[str]
    gaps: list[Gap]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        row = {name: getattr(self.row, name) for name in ("id", "title", "size", "filled", "notes")}
        parts = {"cells": [vars(cell) for cell in self.cells], "gaps": [vars(gap) for gap in self.gaps]}
        facts = {"method": self.method, "phase": self.phase, "parameters": list(self.size)}
        return {**facts, "published": row, "comparable": not self.obstacles, "obstacles": self.obstacles, **parts}


def comparisons(results: Iterable[Result], row_id: str | None = None) -> list[Comparison]:
    """Set results beside the published rows that they are.

    Args:
        results: of VTAB tasks; what may not share a row of a table is compared apart.
        row_id: of one published row to take, whatever the method; None takes, of those that the method's label names,
            the ones that fit its settings best.
    Raises:
        ConfigError: if there is no such row, or none that belongs to these results.
    """
    wanted = printed.find(row_id) if row_id else None
    compared: list[Comparison] = []
    every = ordered(results)
    for setting in settings(every):
        where, _ = places(setting.results, common=setting.common)
        rows: dict[str, list[Result]] = {}
        for result in setting.results:
            if result.tested and printed.column_of(result):
                row, column = where[result.key]
                images = column.removeprefix(result.key.dataset)  # " [2]" where a task has several sets of images
                rows.setdefault(row + (f", images{images}" if images else ""), []).append(result)
        for name, members in sorted(rows.items()):
            if wanted:
                compared += _compared(name, members, wanted)
            else:
                label = members[0].key.method
                compared += _fitting(
                    [comparison for row in printed.of_method(label) for comparison in _compared(name, members, row)]
                )
    if not compared:
        raise ConfigError(_nothing(every, wanted))
    return compared


def _fitting(candidates: Sequence[Comparison]) -> list[Comparison]:
    """Of each phase, the rows with the fewest obstacles."""
    least: dict[str, int] = {}
    for candidate in candidates:
        least[candidate.phase] = min(least.get(candidate.phase, len(candidate.obstacles)), len(candidate.obstacles))
    return [candidate for candidate in candidates if len(candidate.obstacles) == least[candidate.phase]]


def _nothing(results: Sequence[Result], wanted: Row | None) -> str:
    """Why there is nothing to compare."""
    labels = sorted({result.key.method for result in results})
    rows = [wanted] if wanted else [row for label in labels for row in printed.of_method(label)]
    if rows:
        tasks = ", ".join(sorted({result.key.dataset for result in results}))
        ids = ", ".join(dict.fromkeys(row.id for row in rows))
        return f"published rows {ids} have no cell for what was tested here ({tasks}); choose another with --row"
    labelled = sorted({label for row in printed.rows().values() for label, _ in row.ours})
    return (
        f"no published row is {', '.join(labels) or 'of these results'}; choose any with --row. Methods that have one: "
        f"{', '.join(labelled)}"
    )


def _compared(name: str, members: Sequence[Result], row: Row) -> list[Comparison]:
    """A comparison for each of our phases that the row is; of the last phase where it is none of ours."""
    phases: dict[str, list[tuple[Result, int]]] = {}
    for result in members:
        belongs = [phase for phase, _ in printed.phases_of(result, row)] or [f"P{len(result.tested)}"]
        for phase in belongs:
            phases.setdefault(phase, []).append((result, int(phase[1:])))
    by_phase = []
    for phase, runs in sorted(phases.items()):
        cells = _cells([(result, result.tested[number - 1]) for result, number in runs], row)
        if not any(cell.published for cell in cells):
            continue
        sizes = [sum(part.num_tunable for part in result.tested[:number]) for result, number in runs]
        obstacles = [
            reason for result, number in runs for reason in printed.obstacles(result, row, result.tested[number - 1])
        ]
        gaps = _gaps(runs, row, cells)
        by_phase.append(
            Comparison(name, phase, row, (min(sizes), max(sizes)), cells, list(dict.fromkeys(obstacles)), gaps)
        )
    return by_phase


def _cells(runs: Sequence[tuple[Result, PhaseResult]], row: Row) -> list[ComparedCell]:
    by_seed: dict[int, dict[str, float]] = {}
    for result, phase in runs:
        column = printed.column_of(result)
        if column is not None and phase.accuracy is not None:
            by_seed.setdefault(result.key.seed, {})[column] = phase.accuracy
    values: dict[str, list[float]] = {}
    for seed in sorted(by_seed):
        # an average is formed per seed, so that its deviation is that of the averages and not one over tasks
        for column, value in (by_seed[seed] | averages(printed.grouped(by_seed[seed]))).items():
            values.setdefault(column, []).append(value)
    order = [*printed.tasks(), *MEANS]
    return [_cell(column, values[column], row) for column in order if column in values]


def _cell(column: str, values: Sequence[float], row: Row) -> ComparedCell:
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    there = row.cells.get(column)
    return ComparedCell(
        column, mean, std, len(values), row.text(column), None if there is None else mean - float(there)
    )


def _gaps(runs: Sequence[tuple[Result, int]], row: Row, cells: Sequence[ComparedCell]) -> list[Gap]:
    mine = _ours(runs)
    has_average = any(cell.column in ("mean_groups", "mean_19") for cell in cells)
    typical = {"data": _DRAWN} if mine["data"][0] == printed.SYNTHETIC else {}
    gaps = []
    for line in printed.read("gaps.csv"):
        topic = line["topic"]
        # how a paper averages explains no gap where single tasks are compared
        if topic == "average" and not has_average:
            continue
        # and a method that adapts no projection, or has its own names for them, has nothing to set beside theirs
        if topic == "targets" and not mine[topic][0]:
            continue
        theirs = printed.measured(row, topic)
        value, ours = mine[topic]
        verdict = UNKNOWN if not theirs.get("value") else SAME if value == theirs["value"] else DIFFERS
        low, high = (float(line[end]) if line[end] else None for end in ("low", "high"))
        if topic in typical:
            verdict, low, high = DIFFERS, None, None
        gaps.append(
            Gap(
                topic=topic,
                about=line["about"],
                ours=ours,
                theirs=theirs.get("said") or "not stated",
                basis=theirs.get("basis", ""),
                verdict=verdict,
                typical=typical.get(topic, line["typical"]),
                low=low,
                high=high,
                source=line["source"],
                known_from=theirs.get("source", ""),
            )
        )
    return gaps


def _ours(runs: Sequence[tuple[Result, int]]) -> dict[str, tuple[str, str]]:
    """By topic: the value that is compared, and what is said."""
    first = runs[0][0]
    protocol, data, weights = (_part(first, name) for name in ("protocol", "data", "weights"))
    seeds = sorted({result.key.seed for result, _ in runs})
    lengths = sorted({sum(phase.epochs for phase in result.tested[:number]) for result, number in runs})
    images = {
        next((label for label in (printed.SYNTHETIC, printed.LOSSY) if label in result.labels), "lossless")
        for result, _ in runs
    }
    drawn = "drawn images, not the task's; " if printed.SYNTHETIC in images else ""
    targets = sorted({_targets(result.tested[number - 1]) for result, number in runs})
    stamps = sorted({label for result, _ in runs for label in result.labels})
    search = "searched per task on val200" if protocol.get("search") else ""
    search = "the authors' values per task" if POSSIBLY_TUNED in stamps else search
    normalisation = _normalisation(protocol, data)
    length = " to ".join(str(end) for end in sorted({lengths[0], lengths[-1]}))
    return {
        "average": ("both", "both, each by its name"),
        "data": (
            images.pop() if len(images) == 1 else "mixed",
            f"{drawn}{data.get('source') or 'source not recorded'}; labels: {', '.join(stamps) or 'none'}",
        ),
        "weights": (
            str(weights.get("timm_name", "")),
            f"{weights.get('timm_name', 'not recorded')} ({str(weights.get('content', ''))[:24] or 'no content hash'})"
            + (f", {weights['stated']}" if weights.get("stated") else ""),
        ),
        "targets": (" or ".join(targets), " or ".join(targets)),
        "normalisation": (normalisation, f"{normalisation} (protocol.normalize={protocol.get('normalize', '?')})"),
        "resize": (str(protocol.get("resize", "")), str(protocol.get("resize", "not recorded"))),
        "selection": (
            str(protocol.get("select", "")),
            {"last": "last epoch, tested once", "best_test": "best epoch on the test set"}.get(
                str(protocol.get("select")), "not recorded"
            ),
        ),
        "search": ("per task" if search else "fixed", search or "one value for all"),
        "seeds": (str(len(seeds)), f"{len(seeds)}: {', '.join(str(seed) for seed in seeds)}"),
        "epochs": (length, f"{length}, of all phases up to this one"),
        "schedule": (str(protocol.get("schedule", "")), str(protocol.get("schedule", "not recorded"))),
    }


def _targets(phase: PhaseResult) -> str:
    """The projections that a phase adapts, ``q, v``; empty where its method names none."""
    targets = phase.method.get("targets")
    return ", ".join(map(str, targets)) if isinstance(targets, list) else ""


def _part(result: Result, name: str) -> Mapping[str, Any]:
    value = result.provenance.get(name)
    return value if isinstance(value, Mapping) else {}


def _normalisation(protocol: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Name of what the images were brought to; ``model`` is resolved by the recorded mean and deviation."""
    name = str(protocol.get("normalize", "not recorded"))
    mean, std = data.get("mean"), data.get("std")
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return name
    for preset, (shift, scale) in NORMALIZATIONS.items():
        pairs = [*zip(mean, shift, strict=False), *zip(std, scale, strict=False)]
        if all(abs(float(given) - value) < _CLOSE for given, value in pairs):
            return preset
    return name


def text(compared: Sequence[Comparison]) -> str:
    """A heading, the numbers and the protocol for each comparison, as Markdown."""
    return "\n".join(_text(comparison) for comparison in compared)


def _text(comparison: Comparison) -> str:
    lines = [
        f"## {in_markdown(comparison.method)} {comparison.phase} beside {comparison.row.title} ({comparison.row.id})\n",
        f"Parameters without head: {in_words(comparison.size)} here, {comparison.row.size or 'not known'} printed.",
    ]
    if comparison.row.filled:
        lines.append(f"Cells filled from elsewhere: {comparison.row.filled}.")
    if comparison.row.notes:
        lines.append(f"Note on the row: {comparison.row.notes}.")
    if comparison.obstacles:
        lines.append(in_markdown(f"NOT COMPARABLE as they stand: {'; '.join(comparison.obstacles)}."))
    numbers = [
        [
            cell.column,
            f"{cell.mean:.2f}" + (f" \u00b1 {cell.std:.2f}" if cell.std is not None else "") + f" ({cell.n})",
            cell.published,
            "" if cell.difference is None else f"{cell.difference:+.2f}",
        ]
        for cell in comparison.cells
    ]
    lines += ["", *pipes(["column", "ours, mean \u00b1 std (n)", "published", "difference"], numbers, 1)]
    if any(cell.published.endswith("*") for cell in comparison.cells):
        lines.append("\n* computed from the printed cells.")
    for title, verdict in (
        ("What differs, and what that is worth", DIFFERS),
        ("What is not known of the published row", UNKNOWN),
    ):
        if gaps := [gap for gap in comparison.gaps if gap.verdict == verdict]:
            rows = [[g.topic, g.ours, _theirs_text(g), g.typical, g.source] for g in gaps]
            lines += [f"\n### {title}\n", *pipes(["what", "ours", "published", "typical size", "source"], rows, 5)]
    if alike := [gap.topic for gap in comparison.gaps if gap.verdict == SAME]:
        lines.append(f"\nThe same as far as known: {', '.join(alike)}.")
    return "\n".join(lines) + "\n"


def _theirs_text(gap: Gap) -> str:
    return f"{gap.theirs} [{gap.basis}: {gap.known_from}]" if gap.basis else gap.theirs
