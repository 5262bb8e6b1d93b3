"""Results to tables: what is compared with what, the statistics, and the captions. Rendering is in `render`.

Results that were made with other weights or another protocol stand in another table; other images of a task stand in
another column; seeds that do not share one configuration stand in another row. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from headwise.fingerprint import differences, fingerprint
from headwise.records import PhaseResult, Result, RunKey

GROUP_SIZES = {"natural": 7, "specialized": 4, "structured": 8}
"""Tasks per group of VTAB-1k. Averages exist only over all of them."""
AVERAGES = ("mean_19", "mean_groups")
LINE = ["row", "phase", "column", "group", "seed", "value"]
NEUTRAL = {"augment": "none"}
"""Options of the data that change nothing at this value: a record that lacks them says the same."""
LOADING = ("labels", "source", "splits", "resize")
UNRECORDED = "(not recorded)"


@dataclass
class Table:
    """One table: results that may be compared column by column."""

    title: str
    notes: list[str]
    """Caption, one sentence or more each."""
    cells: pd.DataFrame
    """One line per row, column and phase: ``row, phase, column, group, mean, std, n`` (percent; std with n - 1)."""
    costs: pd.DataFrame
    """One line per row: ``row, parameters, head, stored_bytes, epochs``, each ``(smallest, largest)``."""
    paired: pd.DataFrame
    """As ``cells``, of differences between runs of one seed; ``phase`` says which difference."""


@dataclass
class Setting:
    """What results must share to stand in one table, and those that do."""

    shared: dict[str, Any]
    results: list[Result] = field(default_factory=list)


def tables(results: Iterable[Result], title: str = "Results", pool: bool = False) -> list[Table]:
    """Arrange results in tables, one for each combination of weights and protocol.

    Args:
        results: in any order; copies (same configuration, method and variant) count once.
        title: of the first table.
        pool: let results of different weights, protocol and images share columns; the caption says so.
    """
    split = settings(distinct(results), pool)
    made = []
    for number, setting in enumerate(split, start=1):
        notes = []
        if number > 1:
            notes.append(f"Other setting than the first table: {_few(differences(split[0].shared, setting.shared))}.")
        name = title if len(split) == 1 else f"{title}, setting {number} of {len(split)}"
        every = [result for other in split for result in other.results]
        made.append(_table(setting, name, notes, every, pool))
    return made


def distinct(results: Iterable[Result]) -> list[Result]:
    """Return results in the order of their keys, without copies under another run name."""
    seen: dict[tuple[str, str, str], Result] = {}
    for result in sorted(results, key=lambda r: r.key):
        seen.setdefault((result.fingerprint, result.key.method, result.key.variant), result)
    return list(seen.values())


def settings(results: Sequence[Result], pool: bool = False) -> list[Setting]:
    """Split results by weights and protocol, the largest part first."""
    found: dict[str, Setting] = {}
    for result in results:
        shared = {part: recorded(result, part) for part in ("weights", "protocol")}
        found.setdefault("" if pool else fingerprint(shared), Setting(shared)).results.append(result)
    return sorted(found.values(), key=lambda setting: -len(setting.results))


def recorded(result: Result, part: str) -> Any:
    """Return ``weights``, ``protocol`` or ``data`` of a result.

    Of the data only what decides a number: where images came from and which splits this very process had to load (none
    where all phases were found finished) are left out; their content is in the data's own fingerprint.
    """
    value = result.provenance.get(part, UNRECORDED)
    if part == "data" and isinstance(value, Mapping):
        return {name: child for name, child in value.items() if name not in LOADING and NEUTRAL.get(name) != child}
    return value


Places = Mapping[RunKey, tuple[str, str]]
"""Where each result stands: its row and its column."""


def places(results: Sequence[Result], pool: bool = False) -> tuple[Places, list[str]]:
    """Return the row and column of each result, and notes on what was kept apart.

    A column is a task, numbered ``svhn [2]`` where its images differ; a row is a method and its variant, numbered
    where the results of one cell do not share one configuration (seeds apart).
    """
    notes: list[str] = []
    several = len({result.key.name for result in results}) > 1
    columns = _apart(results, lambda r: (r.key.dataset, ""), lambda r: recorded(r, "data"), "data", notes, pool)
    rows = _apart(
        results,
        lambda r: (_row(r.key, several), columns[r.key]),
        lambda r: _without_seed(r.identity),
        "",
        notes,
        pool,
    )
    return {result.key: (rows[result.key], columns[result.key]) for result in results}, notes


def frame(results: Sequence[Result], where: Places) -> pd.DataFrame:
    """Return one line per tested phase: ``row, phase, column, group, seed, value`` (percent).

    Phases without a test are not counted: ``P2`` is the second that was tested.
    """
    lines = [
        _line(result, where, f"P{number}", phase.accuracy)
        for result in results
        for number, phase in enumerate(tested(result), start=1)
    ]
    return pd.DataFrame(lines, columns=LINE)


def _line(result: Result, where: Places, phase: str, value: float | None) -> dict[str, Any]:
    row, column = where[result.key]
    fields = (row, phase, column, group(result), result.key.seed, value)
    return dict(zip(LINE, fields, strict=True))


def summarise(lines: pd.DataFrame) -> pd.DataFrame:
    """Return mean, sample standard deviation and n over seeds, of every column and of both averages.

    An average is formed per seed, from seeds that have all 19 tasks, and its deviation is that of the averages.
    """
    whole = pd.concat([lines, _averages(lines)]) if len(lines) else lines
    keys = ["row", "phase", "column", "group"]
    cells = whole.groupby(keys)["value"].agg(mean="mean", std="std", n="count").reset_index()
    order = {name: place for place, name in enumerate((*GROUP_SIZES, "", "average"))}
    cells["place"] = cells["group"].map(order)
    cells = cells.sort_values(["place", "column", "row", "phase"], ignore_index=True)
    return cells.drop(columns="place")


def _averages(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines of ``mean_19`` and ``mean_groups``, per row, phase and seed, where the 19 tasks are all there."""
    made: list[tuple[Any, ...]] = []
    if lines["column"].str.endswith("]").any():  # a task on more than one set of images: no average is comparable
        return pd.DataFrame(made, columns=LINE)
    for (row, phase, seed), part in lines.groupby(["row", "phase", "seed"], sort=False):
        tasks = part[part["group"].isin(list(GROUP_SIZES))]
        sizes = tasks.groupby("group")["column"].nunique().to_dict()
        if sizes != GROUP_SIZES or len(tasks) != sum(GROUP_SIZES.values()):
            continue
        values = (tasks["value"].mean(), tasks.groupby("group")["value"].mean().mean())
        for column, value in zip(AVERAGES, values, strict=True):
            made.append((row, phase, column, "average", seed, value))
    return pd.DataFrame(made, columns=LINE)


def pair(results: Sequence[Result], where: Places, every: Sequence[Result]) -> pd.DataFrame:
    """Return the differences of each two-phase run to its own Phase 1 and to its controls, seed by seed.

    The control of equal length is a one-phase run of the same first method, task, seed, weights, images and protocol,
    whose epochs are those of both phases together. The one of equal size stands on the very same Phase 1 and trains
    plain LoRA with as many parameters after it, for as many epochs.

    Args:
        results: two-phase runs are sought here.
        where: their rows and columns.
        every: controls are sought here.
    Returns:
        Lines as `frame` gives them; ``phase`` says which difference, ``value`` is in percentage points.
    """
    longer: dict[str, float] = {}
    equal_size: dict[tuple[str, int], float] = {}
    for result in every:
        phases = tested(result)
        if len(phases) == 1 and phases[0].accuracy is not None:
            longer.setdefault(_matched(result, phases[0]), phases[0].accuracy)
        elif _is_size_control(phases) and phases[-1].accuracy is not None:
            equal_size.setdefault((phases[0].fingerprint, _epochs(result)), phases[-1].accuracy)
    lines = []
    for result in results:
        phases = tested(result)
        if len(phases) < 2:
            continue
        last = f"P{len(phases)}"
        others = {
            "P1": phases[0].accuracy,
            "longer P1": longer.get(_matched(result, phases[0])),
            "equal-size LoRA": None
            if _is_size_control(phases)
            else equal_size.get((phases[0].fingerprint, _epochs(result))),
        }
        for name, other in others.items():
            if other is not None and phases[-1].accuracy is not None:
                lines.append(_line(result, where, f"{last} - {name}", phases[-1].accuracy - other))
    return pd.DataFrame(lines, columns=LINE)


def _is_size_control(phases: Sequence[PhaseResult]) -> bool:
    """Whether a run is Phase 1 followed by plain LoRA of the size that per-head updates would have."""
    return len(phases) == 2 and str(phases[1].method.get("_target_", "")).endswith(".MatchedLoRA")


def _uncontrolled(results: Sequence[Result], where: Places, paired: pd.DataFrame) -> list[str]:
    """Say which two-phase rows lack a control, and how to make it."""
    notes = []
    for kind, method in (("longer P1", "hs_control_long"), ("equal-size LoRA", "hs_control_lora")):
        have = set(paired[paired["phase"].str.endswith(kind)][["row", "column"]].itertuples(index=False, name=None))
        two_phase = {where[r.key] for r in results if len(tested(r)) == 2 and not _is_size_control(tested(r))}
        if missing := sorted(two_phase - have):
            rows = ", ".join(f"{row} on {column}" for row, column in missing)
            notes.append(
                f"NO CONTROL ({kind}) for {rows}: its gain over P1 proves little; run method={method} as well."
            )
    return notes


def _matched(result: Result, first: PhaseResult) -> str:
    """Hash of what a two-phase run and its control share; their difference in epochs lies in ``epochs`` alone."""
    protocol = recorded(result, "protocol")
    if isinstance(protocol, Mapping):
        protocol = {name: value for name, value in protocol.items() if name != "epochs"}
    spec = {name: value for name, value in first.method.items() if name not in ("label", "epochs")}
    return fingerprint(
        {
            "dataset": result.key.dataset,
            "seed": result.key.seed,
            "weights": recorded(result, "weights"),
            "data": recorded(result, "data"),
            "protocol": protocol,
            "method": spec or result.fingerprint,  # without a recorded method nothing matches
            "epochs": _epochs(result),
        }
    )


def _epochs(result: Result) -> int:
    return sum(phase.epochs for phase in result.phases)


def tested(result: Result) -> list[PhaseResult]:
    """Return the phases that have a test accuracy."""
    return [phase for phase in result.phases if phase.accuracy is not None]


def group(result: Result) -> str:
    """Return the task's VTAB group; empty for a task of another benchmark."""
    for source in (result.config, result.identity):
        dataset = source.get("dataset")
        if isinstance(dataset, Mapping) and "group" in dataset:
            name = str(dataset["group"]).lower()
            return name if name in GROUP_SIZES else ""
    return ""


def _row(key: RunKey, with_name: bool) -> str:
    row = key.method if key.variant == "base" else f"{key.method} ({key.variant})"
    return f"{key.name}: {row}" if with_name else row


def _without_seed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_seed(child) for name, child in value.items() if name != "seed"}
    return value


def _apart(
    results: Sequence[Result],
    label: Callable[[Result], tuple[str, str]],
    content: Callable[[Result], Any],
    what: str,
    notes: list[str],
    pool: bool,
) -> dict[RunKey, str]:
    """Give each result its label, numbered ``x [2]`` where results of one label and cell differ in content."""
    known: dict[tuple[str, str], list[Any]] = {}
    names = {}
    for result in results:
        name, cell = label(result)
        kinds = known.setdefault((name, cell), [])
        if (value := content(result)) not in kinds:
            kinds.append(value)
        number = kinds.index(value) + 1
        names[result.key] = name if number == 1 or pool else f"{name} [{number}]"
    for (name, cell), kinds in known.items():
        place = f" on {cell}" if cell else ""
        for number, kind in enumerate(kinds[1:], start=2):
            lines = differences({what: kinds[0]}, {what: kind}) if what else differences(kinds[0], kind)
            joined = "are pooled although they differ" if pool else f"are kept apart as {name} [{number}]"
            notes.append(f"Results of {name}{place} {joined}: {_few(lines)}.")
    return names


def _few(lines: Sequence[str], limit: int = 6) -> str:
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more


def _table(setting: Setting, title: str, notes: list[str], every: Sequence[Result], pool: bool) -> Table:
    results = [result for result in setting.results if tested(result)]
    where, apart = places(results, pool)
    lines = frame(results, where)
    cells, paired = summarise(lines), summarise(pair(results, where, every))
    caption = [
        "Test accuracy in percent after each tested phase (P1, P2): mean \u00b1 sample standard deviation (n - 1) over "
        "seeds, and the number of seeds n in brackets. An empty cell is a run that is missing.",
        *_facts(setting, pool),
        _average_note(cells),
        "Parameters are those trained without the head, of all tested phases together; stored bytes are their payload.",
    ]
    caption += _uncontrolled(results, where, paired)
    if (cells["n"] == 1).any():
        caption.append("Cells with n = 1 rest on one seed and have no deviation.")
    return Table(title, [*notes, *caption, *apart], cells, _costs(results, where), paired)


def _facts(setting: Setting, pool: bool) -> list[str]:
    results = setting.results
    seeds = ", ".join(str(seed) for seed in sorted({result.key.seed for result in results}))
    facts = []
    for part in ("weights", "protocol"):
        kinds = {fingerprint({part: recorded(r, part)}): _named(recorded(r, part)) for r in results}
        facts.append(f"{part}: {' and '.join(kinds.values())}" + (" (POOLED)" if pool and len(kinds) > 1 else ""))
    lines = [f"{len(results)} results, seeds {seeds}; {'; '.join(facts)}."]
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


def _average_note(cells: pd.DataFrame) -> str:
    if (cells["group"] == "average").any():
        return (
            "mean_19 is the mean over the 19 tasks, mean_groups the mean of the three group means; both are formed per "
            "seed, from seeds that have all 19 tasks."
        )
    if cells["column"].str.endswith("]").any():
        return "No average: some tasks were measured on more than one set of images."
    tasks = cells[cells["group"].isin(list(GROUP_SIZES))]["column"].nunique()
    return f"No average: no row has all 19 tasks with one seed ({tasks} of 19 tasks are here)."


def _costs(results: Sequence[Result], where: Places) -> pd.DataFrame:
    columns = ["row", "parameters", "head", "stored_bytes", "epochs"]
    lines = [
        (
            where[result.key][0],
            sum(phase.num_tunable for phase in tested(result)),
            tested(result)[-1].num_head,
            sum(phase.stored_bytes for phase in tested(result)),
            _epochs(result),
        )
        for result in results
    ]
    made = []
    for row, part in pd.DataFrame(lines, columns=columns).groupby("row"):
        made.append((row, *((int(part[name].min()), int(part[name].max())) for name in columns[1:])))
    return pd.DataFrame(made, columns=columns)
