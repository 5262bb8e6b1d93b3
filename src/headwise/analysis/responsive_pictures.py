"""Pictures of responsiveness: layer by head maps on one scale, scores against the truth, scores among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.analysis.opened import SCORE_NAMES
from headwise.report.headmap import layer_names

WORDS = {
    "loss_rise": "true rise of the loss",
    "accuracy_drop": "true drop of accuracy",
    "gain": "points of accuracy",
    **SCORE_NAMES,
}
CELL = 0.2
MOST_RUNS = 12
"""In one picture of agreement."""


def _grid(rows: pd.DataFrame, column: str) -> tuple[Any, Any, list[str]]:
    """Values, NaN where there is no head; where no update is; (layers, heads) both; and the layers' names."""
    layers = sorted(set(zip(rows["stage"], rows["block"], strict=True)))
    values = np.full((len(layers), int(rows["heads"].max())), np.nan)
    off = np.zeros(values.shape, dtype=bool)
    for line in rows.itertuples():
        place = layers.index((line.stage, line.block)), line.head
        values[place], off[place] = getattr(line, column), not line.live
    return values, off, layer_names(layers)


def maps(table: pd.DataFrame, columns: Sequence[str], title: str, name: str) -> dict[str, Figure]:
    """A panel per projection (rows) and run or score (columns); several pictures where there are many, by name.

    One column of the table is drawn on one scale for all runs. Of several columns their ranks are drawn, since
    different scores have no common unit. Heads without an update are no part of either.
    """
    ranked, live = len(columns) > 1, table["live"].astype(bool)
    if ranked:
        table = table.assign(**{column: table[column].where(live).rank(pct=True) for column in columns})
    scale = (0.0, 1.0) if ranked else style.scale_of(table.loc[live, list(columns)], diverging=True)
    panels = [(run, column) for run in dict.fromkeys(table["run"]) for column in columns]
    most = max(1, style.MOST_PANELS // table["projection"].nunique())
    return style.parted(name, panels, lambda part: _maps(table, part, title, scale, ranked), most)


def _maps(
    table: pd.DataFrame, panels: Sequence[tuple[str, str]], title: str, scale: tuple[float, float], ranked: bool
) -> Figure:
    projections = list(dict.fromkeys(table["projection"]))
    num_layers = len(set(zip(table["stage"], table["block"], strict=True)))
    size = (max(1.7, CELL * int(table["heads"].max())), max(1.0, CELL * num_layers))
    beside = style.across(len(panels), size[0])
    lines = math.ceil(len(panels) / beside)
    with style.picture(lines * len(projections), beside, panel=size, title=title) as (made, axes):
        image: Any = None
        for (row, column), axis in np.ndenumerate(axes):
            line, projection = row // len(projections), projections[row % len(projections)]
            run, name = panels[min(line * beside + column, len(panels) - 1)]
            own = table[(table["run"] == run) & (table["projection"] == projection)]
            if line * beside + column >= len(panels) or own.empty:
                axis.set_axis_off()
                continue
            values, off, layers = _grid(own, name)
            image = style.head_map(axis, values, layers=layers, scale=scale, diverging=not ranked, absent=off)
            if projection == projections[0]:
                axis.set_title(WORDS[name] if ranked else run, fontsize=8)
            if projection == projections[-1]:
                axis.set_xlabel("head")
            if column == 0:
                axis.set_ylabel(f"{projection}: layer")
        label = "rank among heads with an update (1 most)" if ranked else WORDS[panels[0][1]]
        made.colorbar(image, ax=axes, shrink=0.6, pad=0.02, label=label)
    return made


def agreements(rows: pd.DataFrame, name: str) -> dict[str, Figure]:
    """Rank correlation of every score with both truths over all heads, a point per run over its band of chance."""
    rows = rows[rows["projections"] == "all"]
    runs = list(dict.fromkeys(rows["run"]))
    return style.parted(name, runs, lambda part: _agreements(rows[rows["run"].isin(part)]), MOST_RUNS)


def _agreements(rows: pd.DataFrame) -> Figure:
    scores, runs = list(dict.fromkeys(rows["score"])), list(dict.fromkeys(rows["run"]))
    truths = list(dict.fromkeys(rows["truth"]))
    title = "Which score knows what happens when a head's update is switched off"
    size = (2.9, len(scores) * max(0.36, 0.1 * len(runs) + 0.12))
    with style.picture(1, len(truths), panel=size, title=title, sharey=True) as (made, axes):
        for axis, truth in zip(axes[0], truths, strict=True):
            axis.axvline(0, color=style.NULL, linewidth=0.8)
            for index, run in enumerate(runs):
                points = rows[(rows["truth"] == truth) & (rows["run"] == run)].set_index("score").reindex(scores)
                y = np.arange(len(scores)) + (index - (len(runs) - 1) / 2) * min(0.18, 0.8 / len(runs))
                axis.hlines(
                    y,
                    points["low"],
                    points["high"],
                    color=style.NULL,
                    alpha=0.35,
                    linewidth=6,
                    label="band of random orders, 95 %, of each run",
                )
                axis.plot(points["spearman"], y, label=run, **{**style.look(index), "linestyle": "none"})
            axis.set(title=f"true change of the {truth}", xlabel="Spearman with the score", xlim=(-1.02, 1.02))
            axis.set_yticks(range(len(scores)), [WORDS[score] for score in scores])
            axis.grid(axis="y")
        axes[0, 0].invert_yaxis()
    return made


def matrix(rows: pd.DataFrame) -> Figure:
    """Rank correlation of scores and truths among themselves, the mean over the runs."""
    names = list(dict.fromkeys(rows["one"]))
    values = rows.groupby(["one", "other"])["spearman"].mean().unstack().reindex(index=names, columns=names)
    words = [WORDS[name] for name in names]
    size, title = (0.62 * len(names), 0.5 * len(names)), "How scores agree with each other"
    with style.picture(panel=size, title=title) as (made, axes):
        axis = axes[0, 0]
        image = axis.imshow(values.to_numpy(dtype=float), cmap=style.DIVERGING, vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values.to_numpy(dtype=float)):
            if np.isfinite(value):
                color = "white" if abs(value) > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
        style.hatched(axis, values.isna(), "one of the two is the same for all heads")
        axis.set_xticks(range(len(names)), words, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), words)
        style.bare(axis)
        made.colorbar(image, ax=axis, shrink=0.7, label="Spearman, mean of the runs")
    return made
