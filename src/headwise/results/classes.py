"""What a test says class by class: the confusion matrix, and what is made of it. Never imports torch.

Legend: K classes; rows of a matrix are true classes, columns predicted ones.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.results.records import ACCURACY, PhaseResult
from headwise.storage import atomic

CONFUSION, PRECISIONS = "confusion.csv", "average_precision.csv"
COLUMNS = ("true", "predicted", "images")
Matrix = NDArray[np.int64]
_log = logging.getLogger(__name__)


def measures(matrix: Matrix) -> dict[str, float]:
    """Return ``balanced_accuracy`` and ``macro_f1`` of a matrix (K, K) of counts, percent.

    The first is the mean of the classes' accuracies (recalls), over classes that have a test image; the second the mean
    of their F1 = 2 TP / (2 TP + FP + FN), over classes that are true or predicted somewhere, as scikit-learn has it.
    """
    right, true, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    there, either = true > 0, true + predicted > 0
    recalls = right[there] / true[there]
    scores = 2 * right[either] / (true + predicted)[either]
    return {"balanced_accuracy": 100.0 * float(recalls.mean()), "macro_f1": 100.0 * float(scores.mean())}


def write_confusion(file: Path, matrix: Matrix) -> None:
    """Write a matrix (K, K): a line for each pair of classes that occurred, by their numbers, and how often."""
    lines = [",".join(COLUMNS), *(f"{row},{column},{matrix[row, column]}" for row, column in np.argwhere(matrix))]
    atomic.write_text(file, "\n".join(lines) + "\n")


def read_confusion(file: Path, num_classes: int, num_images: int | None = None) -> Matrix | None:
    """The matrix (K, K) that `write_confusion` wrote; None where the file is damaged, for the run itself is whole.

    Args:
        num_classes: K.
        num_images: that were tested; None where that is not known.
    """
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError("other columns")
            for row in reader:
                true, predicted, images = (int(row[name]) for name in COLUMNS)
                if min(true, predicted, images) < 0 or None in row:
                    raise ValueError("no count of images")
                matrix[true, predicted] = images
        if num_images not in (None, int(matrix.sum())):
            raise ValueError(f"it counts {matrix.sum()} images, {num_images} were tested")
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, csv.Error) as error:
        _log.warning("%s is damaged (%s): it is left out", file, error)
        return None
    return matrix


def write_precisions(folder: Path, names: Sequence[str], precisions: Sequence[float | None]) -> None:
    """Write `PRECISIONS`: for each class (K,) its average precision in percent, empty where no image has the class."""
    cells = [[name, "" if value is None else f"{value:.4f}"] for name, value in zip(names, precisions, strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("class", "average_precision"), *cells])
    atomic.write_text(folder / PRECISIONS, text.getvalue())


def reached(phase: PhaseResult) -> str:
    """The number of a tested phase, to be followed by the images: ``61.20 % of``, or ``61.20 % mAP on``."""
    return f"{phase.accuracy:.2f} % {'of' if phase.metric == ACCURACY else f'{phase.metric} on'}"


def said(extra: Mapping[str, Any]) -> str:
    """What a phase's record says of its classes, in words; empty of older code."""
    found = extra.get("classes")
    if not isinstance(found, Mapping):
        return ""
    return f"balanced accuracy {found['balanced_accuracy']:.2f} %, macro F1 {found['macro_f1']:.2f} %"
