"""Results to tables: the statistics, the costs, the captions. Never imports torch.

What is compared with what is decided in `comparable`, differences are formed in `paired` and parted by task in
`pays`, published rows are joined in `beside`, the text is written in `headwise.report.formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from headwise.comparison import mechanism as lying
from headwise.comparison import printed
from headwise.comparison.averages import SIZES, averages
from headwise.comparison.beside import PUBLISHED, SHOW, beside
from headwise.comparison.comparable import (
    Places,
    Setting,
    by_row,
    distinct,
    few,
    made_by_older_code,
    measured_otherwise,
    ordered,
    places,
    recorded,
    settings,
    shared_choices,
    tuned,
    varied,
)
from headwise.comparison.controls import Claims, Match, controls_of, lacking, matches, unequal, unlike, unmasked
from headwise.comparison.costs import COSTS, spans
from headwise.comparison.paired import CONTRAST, LINE, against, chosen, contrasts, line, pair, ratios
from headwise.comparison.pays import PAYS, pays
from headwise.comparison.verdicts import Judgement, judged, uncontrolled
from headwise.errors import ConfigError, suggest
from headwise.results.fingerprint import differences, fingerprint
from headwise.results.records import FEWSHOT, FEWSHOT_SETS, GROUP_SIZES, MAP, Result

AVERAGES = (*(f"mean_{name}" for name in SIZES), "mean_19", "mean_groups")
"""Columns of averages: each over all tasks of a group, then over all of VTAB-1k, or absent."""
Others = Callable[[], Sequence[Result]]
CELLS = (
    "Test accuracy in percent after each tested phase (P1, P2): mean \u00b1 sample standard deviation (n - 1) over "
    "seeds, and the number of seeds n in brackets. An empty cell is a run that is missing."
)
SPENT = "Parameters are those trained without the head, of all tested phases together; stored bytes are their payload."


@dataclass
class Table:
    """One table: results that may be compared column by column."""

    title: str
    notes: list[str]
    """Caption, one sentence or more each."""
    cells: pd.DataFrame
    """One line per row, column and phase: ``row, phase, column, group, mean, std, n`` (percent; std with n - 1)."""
    costs: pd.DataFrame
    """One line per row: ``row`` and the columns of `COSTS`, each ``(smallest, largest)``."""
    paired: pd.DataFrame
    """As ``cells``, of differences between runs of one seed; ``phase`` says which difference."""
    contrasts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CONTRAST))
    """One line per row and kind of difference, over all tasks and seeds: the fields of `paired.Contrast`."""
    judgements: list[Judgement] = field(default_factory=list)
    """Of each row with a second phase, per-head updates or heads off, whether it is better than its controls."""
    published: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PUBLISHED))
    """One line per cell of a published row: the ``row`` and ``phase`` of ours that it belongs to, ``row_id``,
    ``title``, ``size``, ``column``, ``text`` (``*`` if not printed but computed), ``value``, ``comparable``."""
    apart: list[str] = field(default_factory=list)
    """Sentences over the published rows that are shown although ours may not be set beside them."""
    ratios: pd.DataFrame = field(default_factory=lambda: summarise(pd.DataFrame(columns=LINE), False))
    """As ``cells``, of the accuracy of runs with heads off over that of the same run with none off."""
    pays: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PAYS))
    """Of each row and kind of difference, what groups of tasks and single ones say: as `pays.pays` gives it."""

    mechanism: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=lying.RUNS))
    """One line per run whose record says where its second phase lies: as `mechanism.runs` gives it."""

    @property
    def answers(self) -> list[str]:
        """The judgements, a sentence each."""
        return [str(judgement) for judgement in self.judgements]


def tables(
    results: Iterable[Result],
    title: str = "Results",
    pool: bool = False,
    published: str = "auto",
    others: Others = list,
) -> list[Table]:
    """Arrange results in tables, one for each combination of weights and protocol.

    Args:
        results: in any order; the same run under two names stands in the rows of both.
        title: of the first table.
        pool: let results of different weights, protocol and images share columns; the caption says so.
        published: ``auto`` sets published rows beside results that may be compared with them; ``always`` shows the
            others as well, apart and with the reason; ``never`` shows none.
        others: reads runs of other names, among which controls are sought that these lack.
    """
    if published not in SHOW:
        raise ConfigError(f"unknown choice of published rows {published!r}{suggest(published, SHOW)}")
    split = settings(ordered(results), pool)
    every = [result for setting in split for result in setting.results]
    arranged = []
    for name, notes, setting in _titled(split, title):
        arranged.append(_table(setting, name, notes, every, pool, published, others))
    return arranged


def compare(
    results: Iterable[Result], first: str, second: str, title: str = "Results", pool: bool = False
) -> list[Table]:
    """Compare two rows, paired by task and seed, in every setting that has both.

    Args:
        first, second: rows as the tables name them, with ``:P1`` of that tested phase, else of the last.
    Raises:
        ConfigError: if there is no such row, or the two share no task, seed and setting; says what differs.
    """
    split = settings(ordered(results), pool)
    compared = []
    for name, notes, setting in _titled(split, title):
        where, apart = places(setting.results, pool, setting.common)
        lines = frame(setting.results, where)
        try:
            # a setting that lacks one of the rows is passed over; whether all of them do is asked at the end
            gains = against(lines, first, second)
        except ConfigError:
            continue
        if len(gains):
            rows = {chosen(lines, given)[1] for given in (first, second)}
            shown = [result for result in setting.results if where[result.key][0] in rows]
            order = _order(setting.results, where)
            cells = summarise(lines[lines["row"].isin(rows)], True, order)
            caption = [CELLS, *_facts(replace(setting, results=shown), pool), SPENT, *tuned(shown, where), *apart]
            costs = _costs(shown, where)
            paired = summarise(gains, False, order)
            compared.append(Table(name, [*notes, *caption], cells, costs, paired, contrasts(gains), pays=pays(gains)))
    if not compared:
        every = [result for setting in split for result in setting.results]
        against(
            frame(every, places(every, True, shared_choices(every))[0]), first, second
        )  # names a row that is nowhere
        raise ConfigError(f"{first!r} and {second!r} share no task and seed in one setting. {_parting(split)}")
    return compared


def _parting(split: Sequence[Setting]) -> str:
    if len(split) < 2:
        return "Run both on one task with one seed."
    lines = few(differences(split[0].shared, split[1].shared))
    return f"Settings differ: {lines}. --pool lets them meet all the same."


def _titled(split: Sequence[Setting], title: str) -> list[tuple[str, list[str], Setting]]:
    """Each setting with its title and a note on what it has different from the first."""
    titled = []
    for number, setting in enumerate(split, start=1):
        notes = []
        if number > 1:
            notes.append(f"Other setting than the first table: {few(differences(split[0].shared, setting.shared))}.")
        titled.append((title if len(split) == 1 else f"{title}, setting {number} of {len(split)}", notes, setting))
    return titled


def frame(results: Sequence[Result], where: Places) -> pd.DataFrame:
    """Return one line per tested phase: ``row, phase, column, group, repeat, value`` (percent).

    Phases without a test are not counted: ``P2`` is the second that was tested.
    """
    lines = [
        line(result, where, f"P{number}", phase.accuracy)
        for result in results
        for number, phase in enumerate(result.tested, start=1)
    ]
    return pd.DataFrame(lines, columns=LINE)


def summarise(lines: pd.DataFrame, averages: bool = True, order: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Return mean, sample standard deviation and n over seeds, of every column and, if wanted, of the averages.

    An average is formed per seed, from seeds that have all its tasks, and its deviation is that of the averages.

    Args:
        order: places of columns in their group; the others follow, by name.
    """
    whole = pd.concat([lines, _averages(lines)]) if averages and len(lines) else lines
    keys = ["row", "phase", "column", "group"]
    cells = whole.groupby(keys)["value"].agg(mean="mean", std="std", n="count").reset_index()
    # as in the papers' tables: group after group, tasks in their order, averages last; "" are tasks of one's own
    groups = {name: place for place, name in enumerate((*GROUP_SIZES, FEWSHOT, "", "average"))}
    ranks = {**(order or {}), **{name: place for place, name in enumerate(AVERAGES)}}
    cells["place"], cells["rank"] = cells["group"].map(groups), cells["column"].map(ranks).fillna(len(ranks))
    cells = cells.sort_values(["place", "rank", "column", "row", "phase"], ignore_index=True)
    return cells.drop(columns=["place", "rank"])


def _order(results: Sequence[Result], where: Places) -> dict[str, int]:
    """Columns in the order of the papers' tables, as far as these have them."""
    printed_order = list(printed.tasks())
    tasks = {where[result.key][1]: printed.column_of(result) for result in results}
    return {column: printed_order.index(task) for column, task in tasks.items() if task is not None}


def _averages(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines of a group's mean where the group is whole, and of the means over VTAB where all 19 tasks are there."""
    means: list[tuple[Any, ...]] = []
    if lines["column"].str.endswith("]").any():  # a task on more than one set of images: no average is comparable
        return pd.DataFrame(means, columns=LINE)
    # Pooled results may give one task twice for a seed: such a group has no mean, whatever the number of its lines.
    tasks = lines[lines["group"].isin(list(SIZES))].dropna(subset="value")
    parts = tasks.groupby(["row", "phase", "repeat", "group"]).agg(
        values=("value", list), num_columns=("column", "nunique")
    )
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for part in parts.reset_index().itertuples():
        if part.num_columns == len(part.values):
            groups.setdefault((part.row, part.phase, part.repeat), {})[part.group] = part.values
    for (row, phase, repeat), values in groups.items():
        means += [(row, phase, column, "average", repeat, value) for column, value in averages(values).items()]
    return pd.DataFrame(means, columns=LINE)


def measured(
    results: Sequence[Result], where: Places, every: Sequence[Result], others: Others = list
) -> tuple[list[Match], Claims]:
    """Match runs with their controls; among the other runs only where one is lacking."""
    matched = matches(results, every)
    claims = lacking(results, where, matched)
    # other experiments are many records to read: only where a control is lacking
    if any(tasks for kinds in claims.values() for tasks in kinds.values()) and (more := others()):
        matched = matches(results, [*every, *more])
        claims = lacking(results, where, matched)
    return matched, claims


def _borrowed(matched: Sequence[Match]) -> list[str]:
    names = {match.other.name for match in matched} - {match.result.key.name for match in matched}
    return [f"Controls were also found among the runs of {', '.join(sorted(names))}."] if names else []


def _table(
    setting: Setting, title: str, notes: list[str], every: Sequence[Result], pool: bool, published: str, others: Others
) -> Table:
    results = [result for result in setting.results if result.tested]
    where, apart = places(results, pool, setting.common)
    lines, order = frame(results, where), _order(results, where)
    controls, claims = measured(results, where, every, others)
    differences_ = pair(controls, where)
    cells, paired, together = (
        summarise(lines, True, order),
        summarise(differences_, False, order),
        contrasts(differences_),
    )
    ways = {(claim, where[run.key][0]): kinds for run in results for claim, kinds in controls_of(run).items()}
    caption = [CELLS, *_facts(setting, pool), *_average_notes(cells), SPENT]
    caption += [*_borrowed(controls), *unequal(controls, where), *unlike(controls, where)]
    caption += uncontrolled(claims, ways)
    if (cells["n"] == 1).any():
        caption.append("Cells with n = 1 rest on one seed and have no deviation.")
    shown, beside_notes, apart_notes = beside(results, where, cells, published)
    return Table(
        title,
        [
            *notes,
            *caption,
            *beside_notes,
            *apart,
            *made_by_older_code(results, lambda result: where[result.key][0]),
            *tuned(results, where),
            *measured_otherwise(results, where),
            *varied(results, where),
        ],
        cells,
        _costs(results, where),
        paired,
        together,
        judged(controls, where, claims, results),
        shown,
        apart_notes,
        summarise(ratios(unmasked(results, every), where), False, order),
        pays(differences_),
        lying.runs(results, where),
    )


def _facts(setting: Setting, pool: bool) -> list[str]:
    results = setting.results
    seeds = ", ".join(str(seed) for seed in sorted({result.key.seed for result in results}))
    facts = []
    for part in ("weights", "protocol"):
        values = [recorded(r, part) for r in results] if pool else [setting.shared[part]]
        kinds = {fingerprint({part: value}): _named(value) for value in values}
        facts.append(f"{part}: {' and '.join(kinds.values())}" + (" (POOLED)" if pool and len(kinds) > 1 else ""))
    lines = [f"{len(results)} results, seeds {seeds}; {'; '.join(facts)}."]
    if any(result.metric == MAP for result in results):
        lines.append(f"Columns with ({MAP}) hold the mean average precision over the classes in place of accuracy.")
    if draws := {result.repeat[1] for result in results if result.shots is not None}:
        lines.append(f"Draws of few-shot sets, which count as seeds do: {', '.join(map(str, sorted(draws)))}.")
    if copies := len(results) - len(distinct(results)):
        lines.append(f"{copies} of them are runs that stand under another name as well, made once and shown in both.")
    if setting.common:
        lines.append(f"Every row: {', '.join(setting.common)}.")
    stamps: dict[str, list[Result]] = {}
    for result in results:
        for stamp in result.labels:
            stamps.setdefault(stamp, []).append(result)
    for stamp, stamped in sorted(stamps.items()):
        tasks = ", ".join(sorted({result.key.dataset for result in stamped}))
        extent = "all results" if len(stamped) == len(results) else f"{len(stamped)} results: {tasks}"
        lines.append(f"Label: {stamp} ({extent}).")
    return lines


def _named(value: Any) -> str:
    """Name of a recorded part for a caption: its ``name``, else a hash of it."""
    if isinstance(value, Mapping):
        for key in ("name", "tag", "timm_name", "weights"):
            if value.get(key):
                return f"{value[key]} ({fingerprint(value, 8)})"
        return fingerprint(value, 8)
    return str(value)


def _average_notes(cells: pd.DataFrame) -> list[str]:
    if cells["column"].str.endswith("]").any():
        return ["No average: some tasks were measured on more than one set of images."]
    columns, notes = set(cells["column"]), []
    sets = cells[cells["group"] == FEWSHOT]["column"].nunique()
    if f"mean_{FEWSHOT}" in columns:
        notes.append(
            f"mean_{FEWSHOT} is the mean over the {FEWSHOT_SETS} few-shot sets, formed per seed and draw, from those "
            "that have all of them."
        )
    elif sets:
        notes.append(f"No average over the few-shot sets: no row has all {FEWSHOT_SETS} ({sets} are here).")
    if "mean_19" in columns:
        notes.append(
            "mean_19 is the mean over the 19 tasks, mean_groups the mean of the three group means; both are formed per "
            "seed, from seeds that have all 19 tasks."
        )
    elif (tasks := cells[cells["group"].isin(list(GROUP_SIZES))]["column"].nunique()) or not sets:
        notes.append(
            f"No average over all tasks: no row has all 19 tasks with one seed ({tasks} of 19 tasks are here)."
        )
    return notes


def _costs(results: Sequence[Result], where: Places) -> pd.DataFrame:
    rows = by_row((result for result in results if result.tested), where)
    return pd.DataFrame([{"row": row, **spans(rows[row])} for row in sorted(rows)], columns=["row", *COSTS])
