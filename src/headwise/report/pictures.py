"""Pictures of runs. Never imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headwise.report import headmap
from headwise.report.grid import to_csv
from headwise.report.headmap import HeadMap
from headwise.results.classes import COLUMNS, CONFUSION, read_confusion
from headwise.results.curve import CURVE, read_curve
from headwise.storage import atomic

PICTURES = ("curve.png", "heads.png", "confusion.png")
"""Of a run, in its folder."""
MOST_CLASSES = 60
"""Of a picture of what is taken for what."""
DOTS = 120
"""Per inch."""


def learning_curves(histories: Sequence[Path], labels: Sequence[str], folder: Path, draw: bool = True) -> None:
    """Join the phases' curves into ``metrics.csv`` and draw ``curve.png``: loss and learning rate by epoch.

    Args:
        histories: a metrics.csv for each phase.
        draw: the picture as well.
    """
    rows: list[dict[str, str]] = []
    for index, (history, label) in enumerate(zip(histories, labels, strict=True), start=1):
        if not history.is_file():  # a phase that was taken from a file instead of trained
            continue
        rows += [{"phase": str(index), "label": label, **row} for row in read_curve(history)]
    if not rows:
        return
    columns = list(rows[0])
    atomic.write_text(folder / CURVE, to_csv(columns, [[row[name] for name in columns] for row in rows]))
    if not draw:
        return

    figure = Figure(figsize=(7, 4), layout="constrained", dpi=DOTS)
    loss_axis, rate_axis = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    start = 0
    for index, label in enumerate(labels, start=1):
        phase = [row for row in rows if row["phase"] == str(index)]
        epochs = [start + int(row["epoch"]) for row in phase]
        color = f"C{index - 1}"
        losses = [float(row["train_loss"]) for row in phase]
        loss_axis.plot(epochs, losses, color=color, marker=".", label=f"{index} {label}")
        rate_axis.plot(epochs, [float(row["lr"]) for row in phase], color=color, marker=".")
        start = epochs[-1] if epochs else start
        if index < len(labels):
            for axis in (loss_axis, rate_axis):
                axis.axvline(start + 0.5, color="0.7", linewidth=1)
    loss_axis.set(ylabel="training loss (nats)")
    rate_axis.set(ylabel="learning rate", xlabel="epoch")
    for axis in (loss_axis, rate_axis):
        axis.set_ylim(0, 1.1 * axis.dataLim.ymax)
    rate_axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss_axis.legend(frameon=False)
    with atomic.replacing(folder / "curve.png") as part:
        _save(figure, part)


def score_map(
    phases: Sequence[Sequence[Mapping[str, Any]] | None], labels: Sequence[str], folder: Path, draw: bool = True
) -> None:
    """Draw which heads were scored how, and switched off: ``heads.png``, and the numbers as ``heads.csv``.

    One panel per projection and gated phase: a row per layer, a column per head, the score by colour, a cross on every
    head that is off. Nothing is written where no phase has a gate.

    Args:
        phases: of each phase the records of its projections (stage, block, proj, active, score), None without a gate.
        draw: the picture as well.
    """
    gated = [(number, label, rows) for number, (rows, label) in enumerate(zip(phases, labels, strict=True), 1) if rows]
    if not gated:
        return
    head = ["phase", *("proj" if name == "projection" else name for name in headmap.COLUMNS)]
    lines = [[number, *line] for number, _, rows in gated for line in headmap.lines(rows)]
    atomic.write_text(folder / "heads.csv", to_csv(head, lines))
    if not draw:
        return

    panels = [(f"{number} {label}", panel) for number, label, rows in gated for panel in headmap.head_maps(rows)]
    num_layers = max(len(panel.layers) for _, panel in panels)
    num_heads = max(panel.num_heads for _, panel in panels)
    size = (1.6 + len(panels) * (0.9 + 0.3 * num_heads), 1.6 + 0.3 * num_layers)
    figure = Figure(figsize=size, layout="constrained", dpi=DOTS)
    for axis, (label, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_scores(figure, axis, panel, num_heads)
        axis.set_title(f"{label}: {panel.name}")
    with atomic.replacing(folder / "heads.png") as part:
        _save(figure, part)


def confusion(file: Path, names: Sequence[str], folder: Path, draw: bool = True, num_images: int | None = None) -> None:
    """Write the confusion matrix of the last phase with the classes' names, ``confusion.csv``, and draw it.

    Of more than `MOST_CLASSES` classes nothing is drawn. A row is a true class, its colours are shares of its images.

    Args:
        file: as `headwise.results.classes.write_confusion` wrote it; nothing is done if there is none.
        names: of the classes, (K,).
        draw: the picture as well.
        num_images: that were tested; a file of others is damaged.
    """
    matrix = read_confusion(file, len(names), num_images) if file.is_file() else None
    if matrix is None:
        return
    pairs = [(names[row], names[column], int(matrix[row, column])) for row, column in np.argwhere(matrix)]
    atomic.write_text(folder / CONFUSION, to_csv(COLUMNS, pairs))
    if not draw or len(names) > MOST_CLASSES:
        return
    side = 1.8 + 0.32 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=DOTS)
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    shown = [name if len(name) <= 24 else f"{name[:23]}\u2026" for name in names]
    axis.set_xticklabels(shown, rotation=90, parse_math=False)
    axis.set_yticklabels(shown, parse_math=False)
    for row, column in np.argwhere(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        number = axis.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=color)
        number.set_in_layout(False)  # it lies within the axes: no room needs to be found for it
    figure.colorbar(image, ax=axis, label="% of the true class", shrink=0.7)
    with atomic.replacing(folder / "confusion.png") as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font lacks; confusion.csv has it
        _save(figure, part)


def _draw_scores(figure: Figure, axis: Any, panel: HeadMap, num_heads: int) -> None:
    """One panel; layers with fewer heads leave the rest of their row empty."""
    # NaN is drawn as nothing; zero, the middle of the colours, stands for heads that were not scored.
    empty = [float("nan")] * num_heads
    layers = zip(panel.scores, panel.active, strict=True)
    table = [[*(scores or [0.0] * len(on)), *empty][:num_heads] for scores, on in layers]
    image = axis.imshow(table, cmap="RdBu_r", vmin=-panel.largest, vmax=panel.largest, aspect="auto")
    off = [(head, layer) for layer, on in enumerate(panel.active) for head, active in enumerate(on) if not active]
    axis.plot([head for head, _ in off], [layer for _, layer in off], "kx", markersize=7, linestyle="none")
    axis.set_yticks(range(len(panel.layers)), panel.layers)
    axis.set_xticks(range(num_heads))
    axis.set(xlabel="head", ylabel="stage.layer" if "." in panel.layers[0] else "layer")
    if any(panel.scores):
        figure.colorbar(image, ax=axis, label="score")


def _save(figure: Figure, file: Path) -> None:
    """Write a picture, laid out once; savefig, left to lay it out, draws everything twice."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(file, dpi=DOTS)
