"""The pictures of one table of results: accuracy against parameters, over shots, over heads off, and what heads scored.

Every picture comes with the data that it shows. Never imports torch.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from headwise.comparison.comparable import Places, named
from headwise.comparison.controls import NO_MASK, ground
from headwise.comparison.recipes import class_of
from headwise.comparison.tables import AVERAGES, Table
from headwise.comparison.verdicts import is_headwise
from headwise.report import figures, grids
from headwise.report.figures import Spot
from headwise.report.grid import Grid, plain
from headwise.results.records import FEWSHOT_SETS, MAP, Result


@dataclass(frozen=True)
class Figure:
    """A picture, and the data that it shows."""

    title: str
    svg: Markup
    data: Grid
    caption: str = ""
    legend: Sequence[tuple[Markup, str]] = field(default_factory=tuple)


def scatters(table: Table, results: Sequence[Result], where: Places, slug: str) -> list[Figure]:
    """Accuracy of each row's last phase against its parameters: a picture per task and average."""
    costs = {line.row: line.parameters for line in table.costs.itertuples()}
    headwise = {where[result.key][0] for result in results if is_headwise(result)}
    names = list(dict.fromkeys(table.cells["column"]))
    pictures = []
    for name in sorted(names, key=lambda name: (name not in AVERAGES, names.index(name))):
        cells = table.cells[table.cells["column"] == name].sort_values(["row", "phase"])
        # sorted by phase: of several phases of a row the last one stays
        last = {cell.row: cell for cell in cells.itertuples()}
        if len(last) < 2:
            continue
        spots, lines = [], []
        for row, cell in last.items():
            number = costs[row][1]
            tip = f"{row}: {cell.mean:.2f} %, {number:,} parameters, n = {cell.n}"
            spots.append(Spot(number, cell.mean, cell.std, row, tip, "headwise" if row in headwise else ""))
            lines.append([row, cell.phase, number, cell.mean, cell.std, cell.n])
        shown, axis = measure(name)
        svg = figures.scatter(spots, f"{shown} against parameters, {name}", "parameters without head", axis)
        head = ["method", "phase", "parameters", "mean", "std", "n"]
        pictures.append(Figure(name, svg, plain(f"{slug}-parameters-{slugged(name)}", head, lines, 2)))
    return pictures


def measure(title: str) -> tuple[str, str]:
    """What a picture shows of a task, and the name of its axis; columns of mAP say so in their names."""
    return (MAP, f"{MAP}, %") if f"({MAP})" in title else ("Accuracy", "accuracy, %")


Seeds = dict[tuple[int, int], float]
"""Accuracies by seed and draw."""


def over_shots(results: Sequence[Result], where: Places, common: Sequence[str], slug: str) -> list[Figure]:
    """Accuracy of the last phase over images per class: a picture per few-shot set, before them the mean of all."""
    sets: dict[str, dict[str, dict[float, Seeds]]] = {}
    for result in results:
        number, accuracy = result.shots, result.phases[-1].accuracy
        if number is not None and accuracy is not None:
            line = named(result, [*common, f"shots{number}"])
            points = sets.setdefault(where[result.key][1], {}).setdefault(line, {})
            points.setdefault(number, {})[result.repeat] = accuracy
    pictures = list(sets.items())
    if len(sets) == FEWSHOT_SETS:
        lines = _mean_lines(list(sets.values()))
        pictures = [(f"mean of {FEWSHOT_SETS} few-shot sets", lines)] * bool(lines) + pictures
    return [
        _lines(title, lines, f"{slug}-shots-{place}", ("method", "shots", "images per class"))
        for place, (title, lines) in enumerate(pictures, start=1)
    ]


@dataclass
class Family:
    """Runs of one method on one task that differ in their gates alone.

    Attributes:
        base: name of the method without a gate.
        lines: by kind of gate, by heads off, by seed: accuracies.
        plain: by seed, with no head off.
    """

    base: str
    lines: dict[str, dict[float, Seeds]] = field(default_factory=dict)
    plain: Seeds = field(default_factory=dict)


def curves(results: Sequence[Result], where: Places, slug: str) -> list[Figure]:
    """Accuracy over heads off: a picture per method and task, before them the mean over the tasks.

    A line is a kind of gate, the run without a gate a level.
    """
    families: dict[tuple[str, str], Family] = {}
    warmups = {result.phases[-1].gate.get("warmup") for result in results if result.phases[-1].is_masked}
    for result in results:
        last = result.phases[-1]
        if last.accuracy is None:
            continue
        several = ("seed",) if result.shots is None else ("seed", "data")  # every draw has images of its own
        key = _task(result, where), ground(result, several)
        family = families.setdefault(key, Family(class_of(last.method)))
        if last.is_masked:
            seeds = family.lines.setdefault(_gate_name(result, len(warmups) > 1), {}).setdefault(last.heads_off, {})
        else:
            # only the label of the run without a gate is the method's alone
            family.base = family.base if family.plain else result.key.method
            seeds = family.plain
        seeds.setdefault(result.repeat, last.accuracy)
    drawn = [(task, family) for (task, _), family in families.items() if family.lines]
    bases: dict[tuple[str, str, str], list[Family]] = {}
    for task, family in drawn:
        bases.setdefault((family.base, task.partition(",")[2], measure(task)[0]), []).append(family)
    means = [
        (
            f"mean of {len(tasks)} tasks{f' ({MAP})' * (shown == MAP)}{f',{number}' if number else ''}",
            _mean(base, tasks),
        )
        for (base, number, shown), tasks in bases.items()
        if len(tasks) > 1
    ]
    every = [(title, family) for title, family in [*means, *drawn] if family.lines]
    return [
        _curve(f"{title}: {family.base}", family, f"{slug}-heads-off-{number}")
        for number, (title, family) in enumerate(every, start=1)
    ]


def _task(result: Result, where: Places) -> str:
    """The column of a run, with the shots of a few-shot set after a comma."""
    column = where[result.key][1]
    return column if result.shots is None else f"{column}, {result.shots} shots"


def _mean(base: str, tasks: Sequence[Family]) -> Family:
    """Means over tasks, formed per seed, of what every task has."""
    return Family(base, _mean_lines([task.lines for task in tasks]), _means([task.plain for task in tasks]))


def _mean_lines(tasks: Sequence[dict[str, dict[float, Seeds]]]) -> dict[str, dict[float, Seeds]]:
    lines: dict[str, dict[float, Seeds]] = {}
    for label in tasks[0]:
        for x in tasks[0][label]:
            if seeds := _means([task.get(label, {}).get(x, {}) for task in tasks]):
                lines.setdefault(label, {})[x] = seeds
    return lines


def _means(tasks: Sequence[Seeds]) -> Seeds:
    return {
        seed: statistics.fmean(task[seed] for task in tasks) for seed in tasks[0] if all(seed in task for task in tasks)
    }


def _curve(title: str, family: Family, name: str) -> Figure:
    level = (NO_MASK, family.plain)
    figure = _lines(title, family.lines, name, ("gate", "heads off", "heads off per layer"), level)
    return figure if family.plain else dataclasses.replace(figure, caption="The same run with no head off is missing.")


def _lines(
    title: str,
    lines: dict[str, dict[float, Seeds]],
    name: str,
    axes: tuple[str, str, str],
    level: tuple[str, Seeds] | None = None,
) -> Figure:
    """A line per label, of means over seeds with their deviations, and a level across.

    Args:
        axes: what a line is, what the axis is, and what is written at it.
        level: its label and accuracies.
    """
    kind, over, written = axes
    drawn: dict[str, list[Spot]] = {}
    table: list[list[object]] = []
    for label, points in lines.items():
        drawn[label] = []
        for x, seeds in sorted(points.items()):
            values = list(seeds.values())
            mean, std = statistics.fmean(values), _std(values)
            drawn[label].append(Spot(x, mean, std, tip=f"{label}, {x:g} {over}: {mean:.2f} %, n = {len(values)}"))
            table.append([label, x, mean, std, len(values)])
    height, legend = None, [(figures.swatch(number), label) for number, label in enumerate(drawn)]
    if level and level[1]:
        label, values = level[0], list(level[1].values())
        height = statistics.fmean(values)
        table.append([label, 0.0, height, _std(values), len(values)])
        legend.append((figures.swatch(None), f"{label}: {height:.2f} %, n = {len(values)}"))
    shown, axis = measure(title)
    svg = figures.curves(drawn, height, f"{shown} over {over}, {title}", written, axis)
    return Figure(title, svg, plain(name, [kind, over, "mean", "std", "n"], table), "", legend)


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _gate_name(result: Result, with_warmup: bool) -> str:
    gate = result.phases[-1].gate
    parts = [str(gate.get("mode", "?"))]
    if parts == ["heart"]:
        parts = [str(gate.get("score", "?")), str(gate.get("scope", "?"))]
        parts += ["pooled"] * bool(gate.get("pooled")) + ["last batch"] * (gate.get("score_data") == "last_batch")
        parts += ["budget"] * (gate.get("budget") is not None)
        parts += [f"warm-up {gate.get('warmup')}"] * with_warmup
    return f"{result.key.method}: {', '.join(parts)}"


def maps(results: Sequence[Result], where: Places, slug: str) -> list[tuple[str, Result, int]]:
    """Gated phases to draw, with their names: of each row and task the first seed."""
    drawn: dict[tuple[str, str, int], tuple[str, Result, int]] = {}
    for result in sorted(results, key=lambda r: r.key.seed):
        for number, phase in enumerate(result.phases):
            if phase.is_masked or any(row["score"] for row in phase.masks):
                row, column = where[result.key]
                drawn.setdefault((column, row, number), (f"{row}, {column}, seed {result.key.seed}", result, number))
    return [drawn[key] for key in sorted(drawn)]


def head_map(title: str, result: Result, number: int, slug: str) -> Figure:
    """Scores and mask of one phase of a run."""
    phase = result.phases[number]
    svg = figures.score_map(phase.masks, f"Head scores of {title}: {grids.off(phase)}")
    return Figure(title, svg, grids.heads(phase, f"{slug}-heads-{slugged(title)}-p{number + 1}"), grids.off(phase))


def slugged(text: str) -> str:
    """Name of a file or an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
