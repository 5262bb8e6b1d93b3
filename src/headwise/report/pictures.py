"""Pictures of runs. Never imports torch."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from headwise.comparison.cells import in_csv
from headwise.storage import atomic

matplotlib.use("Agg")
_log = logging.getLogger(__name__)


def _read(history: Path) -> list[dict[str, str]]:
    """Rows of one phase; none where the file is damaged, for the run itself is finished and whole."""
    try:
        with history.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if None in row or None in row.values() or int(row["epoch"]) < 0:
                raise ValueError("a row of another length")
            float(row["train_loss"]), float(row["lr"])
    except (OSError, ValueError, KeyError, csv.Error) as error:
        _log.warning("%s is damaged (%s): its phase is left out of the curves", history, error)
        return []
    return rows


def learning_curves(histories: Sequence[Path], labels: Sequence[str], folder: Path, draw: bool = True) -> None:
    """Join the phases' curves into ``metrics.csv`` and draw ``curve.png``: loss and learning rate by epoch.

    Args:
        histories: a metrics.csv for each phase.
        labels: the phases' names.
        folder: of the run.
        draw: the picture as well.
    """
    rows: list[dict[str, str]] = []
    for index, (history, label) in enumerate(zip(histories, labels, strict=True), start=1):
        if not history.is_file():  # a phase that was taken from a file instead of trained
            continue
        rows += [{"phase": str(index), "label": label, **row} for row in _read(history)]
    if not rows:
        return
    columns = list(rows[0])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([columns, *([in_csv(row[name]) for name in columns] for row in rows)])
    atomic.write_text(folder / "metrics.csv", out.getvalue())
    if not draw:
        return

    figure = Figure(figsize=(7, 4), layout="constrained")
    loss_axis, rate_axis = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    start = 0
    for index, label in enumerate(labels, start=1):
        phase = [row for row in rows if row["phase"] == str(index)]
        epochs = [start + int(row["epoch"]) for row in phase]
        color = f"C{index - 1}"
        losses = [float(row["train_loss"]) for row in phase]
        loss_axis.plot(epochs, losses, color=color, marker=".", label=f"{index} {label}")
        rate_axis.plot(epochs, [float(row["lr"]) for row in phase], color=color)
        start = epochs[-1] if epochs else start
        if index < len(labels):
            for axis in (loss_axis, rate_axis):
                axis.axvline(start + 0.5, color="0.7", linewidth=1)
    loss_axis.set(ylabel="training loss (nats)", ylim=(0, None))
    rate_axis.set(ylabel="learning rate", xlabel="epoch", ylim=(0, None))
    loss_axis.legend(frameon=False)
    with atomic.replacing(folder / "curve.png") as part:
        figure.savefig(part, dpi=120)


def score_map(
    phases: Sequence[Sequence[Mapping[str, Any]] | None], labels: Sequence[str], folder: Path, draw: bool = True
) -> None:
    """Draw which heads were scored how, and switched off: ``heads.png``, and the numbers as ``heads.csv``.

    One panel per projection and gated phase: a row per layer, a column per head, the score by colour, a cross on every
    head that is off. Nothing is written where no phase has a gate.

    Args:
        phases: of each phase the records of its projections (stage, block, proj, active, score), None without a gate.
        labels: the phases' names.
        folder: of the run.
        draw: the picture as well.
    """
    gated = [
        (f"{index} {label}", proj, [row for row in rows if row["proj"] == proj])
        for index, (rows, label) in enumerate(zip(phases, labels, strict=True), start=1)
        if rows
        for proj in dict.fromkeys(row["proj"] for row in rows)
    ]
    if not gated:
        return
    lines = ["phase,stage,block,proj,head,score,active"]
    for label, proj, rows in gated:
        for row in rows:
            scores = row["score"] or [None] * len(row["active"])
            for head, (score, active) in enumerate(zip(scores, row["active"], strict=True)):
                value = "" if score is None else repr(float(score))
                lines.append(f"{label.partition(' ')[0]},{row['stage']},{row['block']},{proj},{head},{value},{active}")
    atomic.write_text(folder / "heads.csv", "\n".join(lines) + "\n")
    if not draw:
        return

    num_layers = max(len(rows) for *_, rows in gated)
    num_heads = max(len(row["active"]) for *_, rows in gated for row in rows)
    size = (1.6 + len(gated) * (0.9 + 0.3 * num_heads), 1.6 + 0.3 * num_layers)
    figure = Figure(figsize=size, layout="constrained")
    for axis, (label, proj, rows) in zip(figure.subplots(1, len(gated), squeeze=False)[0], gated, strict=True):
        _draw_scores(figure, axis, rows, num_heads)
        axis.set_title(f"{label}: {proj}")
    with atomic.replacing(folder / "heads.png") as part:
        figure.savefig(part, dpi=120)


def _draw_scores(figure: Figure, axis: Any, rows: Sequence[Mapping[str, Any]], num_heads: int) -> None:
    """One panel; layers with fewer heads leave the rest of their row empty."""
    empty = [float("nan")] * num_heads
    table = [[*(row["score"] or [0.0] * len(row["active"])), *empty][:num_heads] for row in rows]
    largest = max((abs(value) for row in table for value in row if value == value), default=0.0) or 1.0
    image = axis.imshow(table, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    off = [(head, layer) for layer, row in enumerate(rows) for head, on in enumerate(row["active"]) if not on]
    axis.plot([head for head, _ in off], [layer for _, layer in off], "kx", markersize=7, linestyle="none")
    single = len({row["stage"] for row in rows}) == 1
    axis.set_yticks(range(len(rows)), [str(r["block"]) if single else f"{r['stage']}.{r['block']}" for r in rows])
    axis.set_xticks(range(num_heads))
    axis.set(xlabel="head", ylabel="layer" if single else "stage.layer")
    if any(row["score"] for row in rows):
        figure.colorbar(image, ax=axis, label="score")
