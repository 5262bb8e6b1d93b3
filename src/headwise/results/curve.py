"""The curve of a trained phase on disk: a row per epoch in ``metrics.csv``. Never imports torch."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

CURVE = "metrics.csv"
COLUMNS = ("epoch", "step", "train_loss", "lr", "seconds")
"""The epoch from 1, optimiser steps so far, the epoch's mean loss in nats, the last rate, seconds of the epoch."""
_log = logging.getLogger(__name__)


def read_curve(file: Path) -> list[dict[str, str]]:
    """Rows of one phase; none where the file is damaged, for the run itself is finished and whole."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        for row in rows:
            if None in row or None in row.values() or int(row["epoch"]) < 0:
                raise ValueError("a row of another length")
            int(row["step"]), float(row["train_loss"]), float(row["lr"])
    except (OSError, ValueError, KeyError, csv.Error) as error:
        _log.warning("%s is damaged (%s): its phase is left out of the curves", file, error)
        return []
    return rows
