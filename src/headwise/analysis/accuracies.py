"""Kind ``curves``: accuracy over what was varied (Heart-LoRA, Figures 2, 3, 4 and 8), over parameters, and by seed.

The numbers are those of the tables and of the report. Beside them stands what chance does: the pooled deviation of runs
that differ in their seed alone.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from headwise.analysis import style
from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.comparison.comparable import Places, Setting, natural, ordered, places, settings
from headwise.comparison.controls import NO_MASK
from headwise.comparison.tables import AVERAGES, Table, frame, tables
from headwise.errors import ConfigError
from headwise.report import gallery
from headwise.results.records import Result

WIDTH = 2.5
"""Of a panel, inches."""
MIB_PARAMETERS = 2**20 / 4
"""Parameters of 4 bytes in a MiB, by which Heart-LoRA's table counts."""


def analyse(runs: Sequence[Recorded], options: Options) -> Analysis:
    """Make the analysis of any number of runs, each combination of weights and protocol by itself."""
    results = ordered(run.result for run in runs)
    if not any(result.tested for result in results):
        raise ConfigError(f"curves draw test accuracies, and none of the {len(results)} runs has one")
    split = settings(results)
    made = tables(results, "curves", published="always")
    numbers: dict[str, pd.DataFrame] = {}
    figures: dict[str, Figure] = {}
    said: list[str] = []
    for number, (table, setting) in enumerate(zip(made, split, strict=True), start=1):
        tested = replace(setting, results=[result for result in setting.results if result.tested])
        if not tested.results:
            continue
        end = f"_{number}" if len(split) > 1 else ""
        for name, data, pictures in _pictures(table, tested, end):
            numbers[name] = data
            figures |= pictures
        said += _sentences(table, tested, f"Setting {number}: " if end else "")
    return Analysis("curves", "Accuracy over what was varied", numbers, figures, said)


def _pictures(table: Table, setting: Setting, end: str) -> Iterator[tuple[str, pd.DataFrame, dict[str, Figure]]]:
    """What these results have something to show of: name, numbers, pictures; the end is that of all names."""
    results, common = setting.results, setting.common
    where, _ = places(results, common=common)
    for name, kind, over, drawn in (
        ("shots", "method", "shots", gallery.over_shots(results, where, common, "x")),
        ("heads_off", "gate", "heads off", gallery.curves(results, where, "x")),
    ):
        if drawn:
            data = pd.concat([_numbers(one).assign(task=one.title) for one in drawn], ignore_index=True)
            yield name + end, data, _lines(data, kind, over, name + end)
    if len(table.ratios):
        yield f"ratios{end}", table.ratios, _ratios(table.ratios, f"ratios{end}")
    scatters = gallery.scatters(table, results, where, "x")
    if scatters:
        shown = [one for one in scatters if one.title in AVERAGES] or scatters
        data = pd.concat([_numbers(one).assign(task=one.title) for one in shown], ignore_index=True)
        yield f"parameters{end}", *_parameters(data, table.published, f"parameters{end}")
    lines = once(results, where)
    if _freedom(lines):
        yield f"seeds{end}", lines, _seeds(lines, f"seeds{end}")


def _numbers(drawn: gallery.Figure) -> pd.DataFrame:
    """The numbers of a picture of the report."""
    return pd.read_csv(io.StringIO(drawn.data.csv))


@contextlib.contextmanager
def _panels(names: Sequence[str], height: float = 1.9) -> Iterator[tuple[Figure, list[Any]]]:
    """A picture with a panel per name, as `style.picture`."""
    columns = style.across(len(names), WIDTH)
    with style.picture(math.ceil(len(names) / columns), columns, panel=(WIDTH, height)) as (made, axes):
        flat = list(axes.flat)
        for axis in flat[len(names) :]:
            axis.set_axis_off()
        for axis, name in zip(flat, names, strict=False):
            axis.set_title(name)
            axis.grid(axis="y")
        for axis, name in zip(axes[:, 0], names[::columns], strict=True):
            axis.set_ylabel(f"test {gallery.measure(name)[1]}")
        yield made, flat[: len(names)]


def _lines(data: pd.DataFrame, kind: str, over: str, name: str) -> dict[str, Figure]:
    """A panel per task: a line per kind with its deviation over seeds; a single value at 0 heads off is a level."""
    labels = [label for label in dict.fromkeys(data[kind]) if label != NO_MASK]

    def draw(tasks: Sequence[str]) -> Figure:
        with _panels(tasks) as (made, axes):
            for axis, task in zip(axes, tasks, strict=True):
                for label, part in data[data["task"] == task].groupby(kind, sort=False):
                    if label == NO_MASK:
                        axis.axhline(part["mean"].iloc[0], color=style.NULL, linestyle="--", label=label)
                        continue
                    errors, look = part["std"].fillna(0.0), style.look(labels.index(label))
                    axis.errorbar(part[over], part["mean"], errors, capsize=2, label=label, **look)
                axis.set_xlabel("images per class" if over == "shots" else "heads off per layer")
                axis.set_xticks(sorted(data[over].unique()) if len(data[over].unique()) < 9 else axis.get_xticks())
        return made

    return style.parted(name, list(dict.fromkeys(data["task"])), draw)


def _by_task(
    tasks: Sequence[str], rows: int, y: str, name: str, draw: Callable[[Any, Sequence[str]], None]
) -> dict[str, Figure]:
    """Pictures with a place per task, as wide as that many rows beside each other need."""
    place = max(0.42, 0.1 * rows)

    def one(part: Sequence[str]) -> Figure:
        with style.picture(panel=(max(4.5, place * len(part)), 2.4)) as (figure, axes):
            axis = axes[0, 0]
            draw(axis, part)
            axis.set_xticks(range(len(part)), part, rotation=40, ha="right", rotation_mode="anchor")
            axis.set_xlim(-0.5, len(part) - 0.5)
            axis.set_ylabel(y)
            axis.grid(axis="y")
        return figure

    return style.parted(name, tasks, one, max(1, int(2 * style.WIDEST / place)))


def _ratios(ratios: pd.DataFrame, name: str) -> dict[str, Figure]:
    """Accuracy with heads off over that with none, task by task (Heart-LoRA, Figure 3)."""
    rows = sorted(set(ratios["row"]), key=natural)

    def draw(axis: Any, tasks: Sequence[str]) -> None:
        axis.axhline(1.0, color=style.NULL, linestyle="--", label=NO_MASK)
        for number, row in enumerate(rows):
            part = ratios[ratios["row"] == row].set_index("column").reindex(tasks)
            x = [place + (number - (len(rows) - 1) / 2) * min(0.14, 0.7 / len(rows)) for place in range(len(tasks))]
            look = {**style.look(number), "linestyle": "none"}
            axis.errorbar(x, part["mean"], part["std"].fillna(0.0), capsize=2, label=row, **look)

    tasks = list(dict.fromkeys(ratios["column"]))
    return _by_task(tasks, len(rows), "accuracy over that with no head off", name, draw)


def _parameters(data: pd.DataFrame, published: pd.DataFrame, name: str) -> tuple[pd.DataFrame, dict[str, Figure]]:
    """Accuracy against trained parameters, and published points: filled where they may be compared with ours."""
    theirs = published.assign(parameters=published["size"].map(size_of)).dropna(subset=["parameters"])
    theirs = theirs[theirs["column"].isin(set(data["task"]))].drop_duplicates(["row_id", "column"])
    rows = sorted(set(data["method"]), key=natural)
    figures = style.parted(name, list(dict.fromkeys(data["task"])), lambda tasks: _scatter(data, theirs, tasks, rows))
    mine = data.assign(source="run")
    lines = theirs.assign(
        method=theirs["title"], mean=theirs["value"], task=theirs["column"], source="published", std=None, n=None
    )
    kept = ["source", "task", "method", "phase", "parameters", "mean", "std", "n", "comparable"]
    return pd.concat([mine, lines[lines.columns.intersection(kept)]])[kept] if len(lines) else mine, figures


def _scatter(data: pd.DataFrame, theirs: pd.DataFrame, tasks: Sequence[str], rows: Sequence[str]) -> Figure:
    with _panels(tasks, 2.3) as (made, axes):
        for axis, task in zip(axes, tasks, strict=True):
            for number, row in enumerate(rows):
                part = data[(data["task"] == task) & (data["method"] == row)]
                look = {**style.look(number), "linestyle": "none"}
                axis.errorbar(part["parameters"], part["mean"], part["std"].fillna(0.0), capsize=2, label=row, **look)
            for is_near, said in ((True, "published"), (False, "published, measured otherwise")):
                part = theirs[(theirs["column"] == task) & (theirs["comparable"].astype(bool) == is_near)]
                if len(part):
                    face = style.NULL if is_near else "none"
                    look = {"color": style.NULL, "mfc": face, "ms": 5, "label": said}
                    axis.plot(part["parameters"], part["value"].astype(float), "D", **look)
            _by_size(axis, [*data["parameters"], *theirs["parameters"]])
            axis.set_xlabel("trained parameters, head apart")
    return made


def _by_size(axis: Any, sizes: Sequence[float]) -> None:
    """A logarithmic axis of numbers of parameters, with a place for 0 if there is one."""
    positive = [size for size in sizes if size > 0] or [1.0]
    low, high = min(positive), max(positive)
    if min(sizes) > 0:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.6, high * 1.6)
    else:
        axis.set_xscale("symlog", linthresh=low)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(math.log10(low)), 10) for step in steps]
    shown = [tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    axis.set_xticks([*([0.0] if min(sizes) <= 0 else []), *shown])
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.minorticks_off()


def size_of(printed: str) -> float | None:
    """Parameters of a size as papers print it: ``0.29 M parameters``, ``0.14 MiB fp32-equivalent storage``."""
    number, _, unit = str(printed).partition(" ")
    try:
        value = float(number)
    except ValueError:
        return None
    return value * (MIB_PARAMETERS if unit.startswith("MiB") else 1e6)


def _seeds(lines: pd.DataFrame, name: str) -> dict[str, Figure]:
    """Every seed of every row, less the row's mean, by task: what chance alone does."""
    lines = lines.assign(apart=lines["value"] - lines.groupby(["row", "phase", "column"])["value"].transform("mean"))
    spread = pooled(lines)

    def draw(axis: Any, tasks: Sequence[str]) -> None:
        said = f"pooled deviation, {spread:.2f}"
        axis.axhspan(-spread, spread, color=style.NULL, alpha=0.22, linewidth=0, label=said)
        axis.axhline(0.0, color=style.NULL, linewidth=0.8)
        for number, phase in enumerate(sorted(set(lines["phase"]))):
            part = lines[(lines["phase"] == phase) & lines["column"].isin(tasks)]
            x = [tasks.index(column) + 0.16 * number - 0.08 for column in part["column"]]
            axis.plot(x, part["apart"], alpha=0.7, label=phase, **{**style.look(number), "linestyle": "none"})

    tasks = sorted(set(lines["column"]), key=natural)
    return _by_task(tasks, 1, "accuracy less the mean of the seeds, points", name, draw)


def once(results: Sequence[Result], where: Places) -> pd.DataFrame:
    """Lines of `frame`, each trained phase once.

    Runs that share a first phase (a method and its controls) give its one accuracy under several rows. It is no further
    draw of chance: it stands in the first of these rows, and so do the other seeds of the same phase.
    """
    lines = frame(results, where)
    lines["fingerprint"] = [phase.fingerprint for result in results for phase in result.tested]
    row_of: dict[str, str] = {}
    for _, cell in lines.groupby(["column", "phase", "row"], sort=False):
        known = [trained for trained in cell["fingerprint"] if trained]  # records of older code have none
        first = next((row_of[trained] for trained in known if trained in row_of), cell["row"].iloc[0])
        for trained in known:
            row_of.setdefault(trained, first)
        lines.loc[cell.index, "row"] = first
    is_again = lines["fingerprint"].ne("") & lines["fingerprint"].duplicated()
    return lines[~is_again].drop(columns="fingerprint").reset_index(drop=True)


def pooled(lines: pd.DataFrame) -> float:
    """Deviation between runs that differ in their seed alone, points, pooled over all cells; NaN without any."""
    cells = lines.groupby(["row", "phase", "column"])["value"]
    freedom = _freedom(lines)
    return (
        math.sqrt(float((cells.var(ddof=1).fillna(0.0) * (cells.size() - 1)).sum()) / freedom) if freedom else math.nan
    )


def _freedom(lines: pd.DataFrame) -> int:
    """Degrees of freedom behind `pooled`."""
    return int((lines.groupby(["row", "phase", "column"]).size() - 1).sum())


def _sentences(table: Table, setting: Setting, start: str) -> list[str]:
    where: Places = places(setting.results, common=setting.common)[0]
    rows, columns = zip(*(where[result.key] for result in setting.results), strict=True)
    lines = once(setting.results, where)
    spread = pooled(lines)
    said = [f"{start}{len(setting.results)} runs of {len(set(rows))} methods on {len(set(columns))} tasks."]
    if math.isnan(spread):
        said.append(f"{start}No two runs differ in their seed alone: what chance does is not known.")
    else:
        freedom = _freedom(lines)
        reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(2) * spread
        said.append(
            f"{start}Runs that differ in their seed alone deviate by {spread:.2f} points ({freedom} degrees of "
            f"freedom); single runs of equal methods are apart by more than {reach:.2f} points in one of twenty cases."
        )
    if len(table.ratios):
        means = table.ratios.groupby("row")["mean"].mean()
        parts = "; ".join(f"{row} {means[row]:.3f}" for row in sorted(means.index, key=natural))
        said.append(f"{start}Accuracy over that with no head off, mean of the tasks: {parts}.")
    return said
