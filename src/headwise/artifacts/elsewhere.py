"""A finished run tested on other images of the same classes. What it gives is no record and resembles none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headwise.artifacts import export
from headwise.artifacts.classifier import AT_ONCE, Classifier
from headwise.artifacts.saved import SavedRun
from headwise.data.sources import AutoSource
from headwise.data.stores.classfolders import ClassFolders
from headwise.data.stores.folder import FolderSource, label_array
from headwise.data.stores.labelsets import read_sets
from headwise.data.stores.listfiles import ListedImage, digests, locate, read_list
from headwise.data.tasks import VTABTask
from headwise.errors import DataError, HeadwiseError
from headwise.results.classes import measures
from headwise.results.records import ACCURACY, MAP
from headwise.updates.objective import average_precisions, mean_precision

SPLITS = {"train": "train800val200", "val": "val200", "test": "test"}
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What a run reaches on other images.

    Attributes:
        split: which of them were taken; ``all``.
        num_trained_on: how many of them have the content of an image that the run itself was trained on; None where its
            images are no files, or gone. Earlier runs of a chain are not asked.
        measured: percent by name: accuracy, balanced_accuracy and macro_f1; mAP where images have several labels.
        by_class: percent by class: of its images that are right, or its average precision; None without an image.
        confusion: true class, predicted class and number of images, of the pairs that occur; empty of several labels.
    """

    images: str
    split: str
    num_images: int
    num_trained_on: int | None
    measured: dict[str, float]
    by_class: dict[str, float | None]
    confusion: list[tuple[str, str, int]]

    @property
    def absent(self) -> list[str]:
        """Classes of which there is no image."""
        return [name for name, value in self.by_class.items() if value is None]


def evaluate_on(
    run_dir: str | Path,
    images: str | Path,
    split: str = ALL,
    weights: str | Path | None = None,
    trust: str | Iterable[str] = (),
) -> Elsewhere:
    """Test a finished run on other images; classes are matched by their names.

    Args:
        run_dir, weights, trust: as for `headwise.load`.
        images: a folder of list files or class folders, or a single list file, relative to whose folder paths are.
        split: train, val or test, where the folder is divided; ``all``.

    Raises:
        DataError: for a class that the run does not know, with the nearest that it does; if there is no such split, or
            an image is missing, broken, or outside of the folder.
    """
    saved = SavedRun.read(run_dir, trust)
    known = saved.task
    names = known.class_names or tuple(map(str, range(known.num_classes)))
    task = VTABTask(
        name=known.name, group="own", num_classes=known.num_classes, class_names=names, folders=(".",),
        depth=known.depth, channels=known.channels, multi_label=known.multi_label,
    )  # fmt: skip
    place = Path(images)
    if place.is_file():
        read = read_sets if task.multi_label else read_list
        entries = read(place, task.num_classes, task.class_names)
    else:
        entries = _of_folder(place, task, split)
    folder = place.parent if place.is_file() else place
    files = [path for path, _ in locate(entries, folder, folder)]
    net = export.load(run_dir, weights, trust=trust)
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    logits, labels = _logits(net, files, saved.protocol.precision), label_array(entries, task)
    own = _trained_on(saved)
    return Elsewhere(
        images=str(images),
        split=split,
        num_images=len(files),
        num_trained_on=None if own is None else sum(d.sha256 in own for d in digests(entries, folder, folder)),
        **_measured(logits, labels, names),  # type: ignore[arg-type]
    )


def _of_folder(folder: Path, task: VTABTask, split: str) -> list[ListedImage]:
    """The images of a split, or all of them, each once."""
    source = FolderSource(folder)
    lists = source.lists(task)
    if split != ALL:
        if isinstance(lists, ClassFolders) and "" in lists.parts:
            raise DataError(f"{str(folder)!r} is not divided into train and test; --split all takes all of its images")
        return lists.entries(SPLITS[split])
    there = [part for part in SPLITS.values() if lists.file(part) is not None]
    if not there:
        raise DataError(f"{str(folder)!r} holds neither two class folders nor list files; Parquet is not read here")
    return list({entry.path: entry for part in there for entry in lists.entries(part)}.values())


def _trained_on(saved: SavedRun) -> set[str] | None:
    """Content of the images that the run was trained on; None where they are no files, or gone."""
    try:
        source = saved.source()
        source = source.resolve(saved.task) if isinstance(source, AutoSource) else source
        if not isinstance(source, FolderSource):
            return None
        entries = source.lists(saved.task).entries(saved.protocol.train_split)
        return {digest.sha256 for digest in digests(entries, source.folder(saved.task), source.root)}
    except HeadwiseError:
        return None


@torch.no_grad()
def _logits(net: Classifier, files: Sequence[Path], precision: str) -> torch.Tensor:
    """(N, K) float32, computed in the precision of the run."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    device = next(net.parameters()).device.type
    parts = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    net.eval()
    with torch.autocast(device, dtype=kind or torch.bfloat16, enabled=kind is not None):
        return torch.cat([net(net.preprocess(part)).float().cpu() for part in parts])


def _measured(logits: torch.Tensor, labels: np.ndarray, names: Sequence[str]) -> dict[str, object]:
    if labels.ndim == 2:
        precisions = average_precisions(logits, torch.from_numpy(labels))
        by_class = dict(zip(names, precisions, strict=True))
        return {"measured": {MAP: mean_precision(precisions)}, "by_class": by_class, "confusion": []}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, (labels, logits.argmax(1).numpy()), 1)
    totals = matrix.sum(1)
    rights = np.diagonal(matrix)
    return {
        "measured": {ACCURACY: 100.0 * int(rights.sum()) / int(totals.sum()), **measures(matrix)},
        "by_class": {
            name: 100.0 * int(right) / int(total) if total else None
            for name, right, total in zip(names, rights, totals, strict=True)
        },
        "confusion": [(names[row], names[column], int(matrix[row, column])) for row, column in np.argwhere(matrix)],
    }
