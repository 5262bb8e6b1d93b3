"""The leaderboard at the head of the report: a line per method and variant, in blocks of one setting. Never torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headwise.comparison.averages import averages
from headwise.comparison.comparable import Places, by_row
from headwise.comparison.costs import COSTS, in_words, spans
from headwise.report.grid import Cell, Grid, to_csv
from headwise.results.records import GROUP_SIZES, MAP, Result

OTHER = "other tasks"
MEAN, GROUPS = "mean", "mean of groups"
SIZE = COSTS["parameters"].title
HEAD = ("method", MEAN, GROUPS, *GROUP_SIZES, OTHER, MAP, SIZE, "tasks", "seeds", "labels")
NEEDED = ("method", SIZE, MEAN, "tasks", "seeds")
"""Columns that stand there even where they are empty."""
PART = "part"
"""Class of a mean that lacks tasks of its block: it is sorted behind those that have all."""


@dataclass(frozen=True)
class Standing:
    """One line.

    Attributes:
        tasks: mean accuracy of the last tested phase on each task, percent.
    """

    cells: dict[str, Cell]
    tasks: Mapping[str, float]
    labels: Sequence[str]


@dataclass(frozen=True)
class Block:
    """Lines that may be compared: they share weights and protocol.

    Attributes:
        lead: its tasks and the labels that all of its lines have, in words.
        standings: best first; those that lack tasks stand last.
    """

    title: str
    slug: str
    lead: str
    standings: Sequence[Standing]
    tasks: Sequence[str]


@dataclass(frozen=True)
class Board:
    """All blocks, and what the page's filters offer.

    Attributes:
        grid: head and data; its body stands in the blocks.
        place: of the column that lines are sorted by.
    """

    grid: Grid
    place: int
    blocks: Sequence[Block]
    tasks: Sequence[str]
    labels: Sequence[str]


Scores = dict[str, dict[tuple[int, int], float]]
"""Accuracies of a line's last tested phase, percent: by task, by seed and draw."""


def block(
    title: str, slug: str, results: Sequence[Result], where: Places, badges: Mapping[str, str], order: Sequence[str]
) -> Block:
    """Arrange the tested results of one table, tasks in the `order` of its columns; badges stand beside rows."""
    groups: dict[str, str] = {}
    for result in results:
        group = result.group if result.group in GROUP_SIZES else OTHER
        groups[where[result.key][1]] = MAP if result.metric == MAP else group
    tasks = sorted(groups, key=lambda task: order.index(task) if task in order else len(order))
    parts = {name: [task for task in tasks if groups[task] == name] for name in (*GROUP_SIZES, OTHER, MAP)}
    rows = by_row(results, where).items()
    standings = [_standing(row, members, where, parts, badges.get(row, "")) for row, members in rows]
    standings.sort(key=lambda line: (-len(line.tasks), -(line.cells[MEAN].value or 0), line.cells["method"].text))
    counts = ", ".join(f"{name} {len(some)}" for name, some in parts.items() if some)
    names = ": " + ", ".join(tasks) if len(tasks) <= len(GROUP_SIZES) * 2 else ""
    lead = f"{len(tasks)} task{'s' * (len(tasks) > 1)} ({counts}){names}"
    shared = [label for label in standings[0].labels if all(label in line.labels for line in standings)]
    for line in standings:
        line.cells["labels"] = Cell(", ".join(label for label in line.labels if label not in shared))
    return Block(title, slug, "; ".join([lead, *([", ".join(shared)] if shared else [])]), standings, tasks)


def _standing(
    row: str, members: Sequence[Result], where: Places, parts: Mapping[str, Sequence[str]], badge: str
) -> Standing:
    scores: Scores = {}
    for result in members:
        value = result.tested[-1].accuracy
        if value is not None:
            scores.setdefault(where[result.key][1], {})[result.repeat] = value
    every = [task for tasks in parts.values() for task in tasks]
    # mAP is no accuracy: it is averaged apart, and is the mean only where there is nothing else
    alike = [task for task in every if task not in parts[MAP]] or every
    cells = {name: _mean(scores, tasks) for name, tasks in parts.items() if tasks}
    counts = sorted({len(seeds) for seeds in scores.values()})
    labels = list(dict.fromkeys(label for result in members for label in result.labels))
    ends = spans(members)["parameters"]
    done = sum(task in scores for task in every)
    cells |= {
        "method": Cell(row, badge=badge),
        SIZE: Cell(in_words(ends, " \u2013 "), ends[1]),
        MEAN: _mean(scores, alike),
        GROUPS: _of_groups(scores, parts),
        "tasks": Cell(str(done), done, f"of {len(every)}" if done < len(every) else ""),
        "seeds": Cell(" \u2013 ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))), counts[0]),
    }
    cells = {name: cells.get(name, Cell()) for name in HEAD}
    return Standing(cells, {task: statistics.fmean(scores[task].values()) for task in every if task in scores}, labels)


def _mean(scores: Scores, tasks: Sequence[str]) -> Cell:
    """Mean over those tasks that are there, of each one's mean over its seeds; how many, where some lack.

    Its deviation is that of the seeds' own means, where every seed has every task.
    """
    there = [scores[task] for task in tasks if task in scores]
    if not there:
        return Cell()
    mean = statistics.fmean(statistics.fmean(seeds.values()) for seeds in there)
    if len(there) < len(tasks):
        return Cell(f"{mean:.2f}", mean, f"{len(there)} of {len(tasks)}", PART)
    seeds = set(there[0])
    if len(seeds) < 2 or any(set(task) != seeds for task in there):
        return Cell(f"{mean:.2f}", mean)
    deviation = statistics.stdev(statistics.fmean(task[seed] for task in there) for seed in sorted(seeds))
    return Cell(f"{mean:.2f}", mean, f"\u00b1 {deviation:.2f}")


def _of_groups(scores: Scores, parts: Mapping[str, Sequence[str]]) -> Cell:
    """The mean of the three group means, of a line that has all 19 tasks."""
    groups = {
        name: [statistics.fmean(scores[task].values()) for task in parts[name] if task in scores]
        for name in GROUP_SIZES
    }
    mean = averages(groups).get("mean_groups")
    return Cell() if mean is None else Cell(f"{mean:.2f}", mean)


def board(blocks: Sequence[Block]) -> Board:
    """Join the blocks; columns that no line fills are left out."""
    lines = [line for one in blocks for line in one.standings]
    filled = [name for name in HEAD if name in NEEDED or any(line.cells[name].text for line in lines)]
    if [name for name in filled if name in (*GROUP_SIZES, OTHER)] == [OTHER]:
        filled.remove(OTHER)  # it would say what the mean says
    named = [*(name for name in filled if name != "labels"), "labels"]
    head = ["setting", *named]
    data = [
        [one.title, *(", ".join(line.labels) if name == "labels" else _plain(line.cells[name]) for name in named)]
        for one in blocks
        for line in one.standings
    ]
    return Board(
        grid=Grid("leaderboard", filled, [], to_csv(head, data)),
        place=filled.index(MEAN),
        blocks=blocks,
        tasks=list(dict.fromkeys(task for one in blocks for task in one.tasks)),
        labels=sorted({label for line in lines for label in line.labels}),
    )


def _plain(cell: Cell) -> object:
    return cell.text if cell.value is None else cell.value
