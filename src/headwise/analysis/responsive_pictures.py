"""Pictures of responsiveness: layer by head maps on one scale, scores against the truth, scores among themselves."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headwise.analysis.opened import SCORE_NAMES
from headwise.analysis.style import COLORS, DIVERGING, MARKERS, NULL, figure, head_map, styled
from headwise.report.headmap import layer_names

WORDS = {
    "loss_rise": "true rise of the loss",
    "accuracy_drop": "true drop of accuracy",
    "gain": "points of accuracy",
    **SCORE_NAMES,
}
CELL = 0.2
MOST_COLUMNS = 8


def _grid(rows: pd.DataFrame, column: str) -> tuple[Any, Any, list[str]]:
    """Values and gates as (layers, heads), NaN where there is no update, and the layers' names."""
    layers = sorted(set(zip(rows["stage"], rows["block"], strict=True)))
    values = np.full((len(layers), int(rows["heads"].max())), np.nan)
    off = np.zeros(values.shape, dtype=bool)
    for line in rows.itertuples():
        place = layers.index((line.stage, line.block)), line.head
        values[place], off[place] = getattr(line, column), line.gate == 0
    return values, off, layer_names(layers)


def maps(table: pd.DataFrame, columns: Sequence[str], title: str) -> Figure:
    """A panel per projection (rows) and run or score (columns).

    One column of the table is drawn on one scale for all runs. Of several columns their ranks are drawn, since
    different scores have no common unit.
    """
    ranked = len(columns) > 1
    runs, projections = list(dict.fromkeys(table["run"])), list(dict.fromkeys(table["projection"]))
    panels = [(run, column) for run in runs for column in columns]
    if ranked:
        table = table.assign(**{name: table[name].rank(pct=True) for name in columns})
    beside = min(len(panels), MOST_COLUMNS)
    lines = math.ceil(len(panels) / beside)
    num_layers = len(set(zip(table["stage"], table["block"], strict=True)))
    num_heads = int(table["heads"].max())
    width = max(1.15, CELL * num_heads + 0.35)
    size = (max(4.2, beside * width + 1.2), lines * len(projections) * (CELL * num_layers + 0.55) + 0.6)
    high = 1.0 if ranked else float(np.nanmax(np.abs(table[list(columns)].to_numpy(dtype=float))))
    with styled():
        made, axes = figure(lines * len(projections), beside, size=size)
        image: Any = None
        for row, column in itertools.product(range(axes.shape[0]), range(beside)):
            axis, line = axes[row, column], row // len(projections)
            index, projection = line * beside + column, projections[row % len(projections)]
            if index >= len(panels):
                axis.set_axis_off()
                continue
            run, name = panels[index]
            own = table[(table["run"] == run) & (table["projection"] == projection)]
            values, off, layers = _grid(own, name)
            image = head_map(
                axis, values, layers=layers, low=0.0 if ranked else -high, high=high, diverging=not ranked, marked=off
            )
            if row % len(projections) == 0:
                words = WORDS[name] if ranked else run
                axis.set_title(words.replace(", ", "\n", 2) if len(words) > 14 else words, fontsize=8)
            if row == axes.shape[0] - 1:
                axis.set_xlabel("head")
            if column == 0:
                axis.set_ylabel(f"{projection}: layer")
        label = "rank among all heads (1 most)" if ranked else WORDS[columns[0]]
        made.colorbar(image, ax=axes, shrink=0.6, pad=0.02, label=label)
        made.suptitle(textwrap.fill(title, round(9 * size[0])))  # a letter is about a ninth of an inch
    return made


def agreements(rows: pd.DataFrame) -> Figure:
    """Rank correlation of every score with both truths over all heads, a point per run, over the band of chance."""
    rows = rows[rows["projections"] == "all"]
    scores, runs = list(dict.fromkeys(rows["score"])), list(dict.fromkeys(rows["run"]))
    truths = list(dict.fromkeys(rows["truth"]))
    with styled():
        made, axes = figure(1, len(truths), size=(7.4, 0.36 * len(scores) + 1.5 + 0.1 * len(runs)), sharey=True)
        for axis, truth in zip(axes[0], truths, strict=True):
            own = rows[rows["truth"] == truth]
            if own["low"].notna().any():
                axis.axvspan(
                    own["low"].min(),
                    own["high"].max(),
                    color=NULL,
                    alpha=0.25,
                    linewidth=0,
                    label="random orders, 95 %",
                )
            axis.axvline(0, color=NULL, linewidth=0.8)
            for index, run in enumerate(runs):
                points = own[own["run"] == run].set_index("score").reindex(scores)
                offset = (index - (len(runs) - 1) / 2) * min(0.18, 0.7 / len(runs))
                style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
                axis.plot(points["spearman"], np.arange(len(scores)) + offset, linestyle="none", label=run, **style)
            axis.set_xlim(-1.02, 1.02)
            axis.set_yticks(range(len(scores)), [WORDS[score] for score in scores])
            axis.set_title(f"true change of the {truth}")
            axis.set_xlabel("Spearman with the score")
            axis.grid(axis="y")
        axes[0, 0].invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
        made.suptitle("Which score knows what happens when a head's update is switched off")
    return made


def matrix(rows: pd.DataFrame) -> Figure:
    """Rank correlation of scores and truths among themselves, the mean over the runs."""
    names = list(dict.fromkeys(rows["one"]))
    values = rows.groupby(["one", "other"])["spearman"].mean().unstack().reindex(index=names, columns=names)
    words = [WORDS[name] for name in names]
    with styled():
        made, axes = figure(size=(0.62 * len(names) + 2.6, 0.5 * len(names) + 2.0))
        axis = axes[0, 0]
        image = axis.imshow(values.to_numpy(dtype=float), cmap=DIVERGING, vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(values.to_numpy(dtype=float)):
            if np.isfinite(value):
                color = "white" if abs(value) > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(names)), words, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), words)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        made.colorbar(image, ax=axis, shrink=0.7, label="Spearman, mean of the runs")
        made.suptitle("How scores agree with each other")
    return made
