"""Pictures of runs. Never imports torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from headwise import atomic

matplotlib.use("Agg")


def learning_curves(histories: Sequence[Path], labels: Sequence[str], folder: Path) -> None:
    """Join the phases' curves into ``metrics.csv`` and draw ``curve.png``: loss and learning rate by epoch.

    Args:
        histories: a metrics.csv for each phase.
        labels: the phases' names.
        folder: of the run.
    """
    rows: list[dict[str, str]] = []
    for index, (history, label) in enumerate(zip(histories, labels, strict=True), start=1):
        if not history.is_file():  # a phase that was taken from a file instead of trained
            continue
        with history.open(encoding="utf-8", newline="") as file:
            rows += [{"phase": str(index), "label": label, **row} for row in csv.DictReader(file)]
    if not rows:
        return
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in rows)]
    atomic.write_text(folder / "metrics.csv", "\n".join(lines) + "\n")

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
    part = folder / "curve.part.png"
    figure.savefig(part, dpi=120)
    part.replace(folder / "curve.png")
