"""What a person sees while a phase trains, and the curve that stays behind."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from headwise.results.curve import COLUMNS, CURVE
from headwise.storage import atomic
from headwise.training.memory import forget_peak, peak_memory

Tell = Callable[[int, Mapping[str, Any]], None]
"""Told of an epoch: the number of its phase, from 1, and its row of `History`."""


def hush() -> None:
    """Keep lightning from telling what its user did not ask: devices that it sees, hints about workers and trackers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


class History(L.Callback):
    """One row per finished epoch, in ``metrics.csv`` of the phase's folder; survives a resume with the checkpoint.

    Attributes:
        rows: epoch (1-based), step (optimiser steps so far), train_loss (epoch's mean, nats), lr (last), seconds.
        images: training images seen.
        peak_memory: of training, see `headwise.training.memory.peak_memory`; the largest where the phase was resumed.
    """

    def __init__(self, folder: Path, tell: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.folder, self.tell = folder, tell
        self.rows: list[dict[str, Any]] = []
        self.images = 0
        self.peak_memory: int | None = None
        self._start = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in finished epochs."""
        return sum(row["seconds"] for row in self.rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure memory from here; tell of the epochs before a resume."""
        forget_peak(pl_module.device)
        if self.tell is not None:
            for row in self.rows:
                self.tell(row)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of the batch."""
        self.images += len(batch[1])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row and write the file anew."""
        peak = peak_memory(pl_module.device)
        self.peak_memory = peak if self.peak_memory is None else max(self.peak_memory, peak or 0)
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "train_loss": float(trainer.callback_metrics["train_loss"]),
                "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
                "seconds": time.perf_counter() - self._start,
            }
        )
        if self.tell is not None:
            self.tell(self.rows[-1])
        # the whole file anew, since a resumed phase may have rows of epochs that are trained again
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic.write_text(self.folder / CURVE, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: the rows, images and peak so far."""
        return {"rows": [dict(row) for row in self.rows], "images": self.images, "peak_memory": self.peak_memory}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.rows, self.images = [dict(row) for row in state_dict["rows"]], state_dict["images"]
        self.peak_memory = state_dict.get("peak_memory")


class Progress(L.Callback):
    """A bar on a terminal; elsewhere `say` is told a line about every tenth of the run."""

    def __init__(self, title: str, epochs: int, say: Callable[[str], None]) -> None:
        self.title, self.epochs, self.say = title, epochs, say
        self._bar: RichProgress | None = None
        self._start = 0.0
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._start, self._first = time.perf_counter(), trainer.current_epoch
        console = Console()
        if console.is_terminal:
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            columns = (BarColumn(), MofNCompleteColumn(), *times, TextColumn("{task.fields[note]}"))
            self._bar = RichProgress(TextColumn("{task.description}"), *columns, console=console)
            total = self.epochs * int(trainer.num_training_batches)
            self._bar.add_task(self.title, total=total, completed=trainer.global_step, note="")
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Move the bar on to the present step."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's loss, on the bar or on a line of its own."""
        epoch = trainer.current_epoch + 1
        loss = float(trainer.callback_metrics["train_loss"])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=f"loss {loss:.4f}")
        elif epoch == self.epochs or epoch % max(1, self.epochs // 10) == 0:
            spent = time.perf_counter() - self._start
            # by the epochs of this process: those before a resume cost it no time
            left = spent / max(1, epoch - self._first) * (self.epochs - epoch)
            self.say(f"{self.title}: epoch {epoch}/{self.epochs}, loss {loss:.4f}, {left:.0f} s left")

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, *_: Any) -> None:
        """Close the bar."""
        self.on_train_end()
