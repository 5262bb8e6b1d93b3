"""Few-shot sets: k images per class to train on, drawn three times. Published lists where they are, else our own draw.

The published lists lie in ``<folder>/annotations``: one per number of shots and draw, one to search with, one to test.
The draws are independent of each other, not nested. Where they are absent, the same number is drawn from the set's
training images by md5, whatever the seed of a run, and results carry the label ``own draw``. Numpy only.

In the names of splits, train800 and train800val200 are both the k images per class, val200 is the search's list.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwise.data.bulk import MEMORY
from headwise.data.pixels import FINAL_SPLITS, Pixels
from headwise.data.splits import Indices, subset
from headwise.data.stores.gathered import gathered
from headwise.data.stores.listfiles import Contents, ListedImage, read_list
from headwise.data.tasks import VTABTask, check_split
from headwise.errors import DataError

OWN_DRAW = "own draw"
UNOFFICIAL = "unofficial split"
LISTS = "annotations"
POOL = "train_meta.list"

Kind = TypeVar("Kind")


class Pool(Protocol):
    """A source that reads whole upstream slices, and so any images of them."""

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images."""
        ...

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        """(N,) classes, without decoding."""
        ...

    def chunks(self, task: VTABTask, split: str, size: int, resize: str, positions: Indices) -> Iterator[Pixels]:
        """The images at ascending positions of a split, some hundred at a time."""
        ...

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = ...) -> str:
        """Content of splits."""
        ...

    def slice_labels(self, task: VTABTask) -> list[str]:
        """What a reader must know of results with images of a slice, without reading one."""
        ...


class FewShotSource:
    """Few-shot sets of our own draw, from the upstream slices that another source, `pool`, reads."""

    def __init__(self, pool: Pool, memory: float = MEMORY) -> None:
        self.pool, self.memory = pool, memory

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the slices that are drawn from, and of the draw."""
        sha = hashlib.sha256(b"fewshot/1\n")
        for split in splits:
            chosen = f"{task.shots} {task.draw}" if is_train(split) else "all"
            whole = [self.pool.fingerprint(part, ("test",)) for part in slices(task, split)]
            sha.update(f"{split} {task.name} {chosen} {' '.join(whole)}\n".encode())
        return sha.hexdigest()

    def labels(self, task: VTABTask) -> list[str]:
        """Those of the slice of the test images, and ``own draw``."""
        return [*self.pool.slice_labels(slices(task, "test")[0]), OWN_DRAW]

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of a split."""
        if is_train(split):
            return (task.shots or 0) * task.num_classes
        return sum(self.pool.count(part, "test") for part in slices(task, split))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Read the images of a split, each from the slice that it is in."""
        parts = slices(task, split)
        if is_train(split):
            labels = [self.pool.all_labels(part, "test") for part in parts]
            lengths = [len(classes) for classes in labels]
            chosen = draw(task, np.concatenate(labels))
        else:
            lengths = [self.pool.count(part, "test") for part in parts]
            chosen = np.arange(sum(lengths), dtype=np.int64)
        chosen = chosen[subset(len(chosen), limit)]

        def chunks() -> Iterator[Pixels]:
            start = 0
            for part, length in zip(parts, lengths, strict=True):
                positions = chosen[(chosen >= start) & (chosen < start + length)] - start
                if len(positions):
                    yield from self.pool.chunks(part, "test", size, resize, positions)
                start += length

        return gathered(self, task, split, (size, resize), len(chosen), chunks, f"{task.pixel_scale} {limit}")


def drawing_few_shots(*names: str) -> Callable[[type[Kind]], type[Kind]]:
    """Class decorator of a source that reads slices: of few-shot tasks a `FewShotSource` around it answers.

    It answers to the methods that are named, all of which take the task first.
    """

    def decorate(kind: type[Kind]) -> type[Kind]:
        for name in names:
            setattr(kind, name, _answering(getattr(kind, name), getattr(FewShotSource, name)))
        return kind

    return decorate


def _answering(of_slices: Callable[..., Any], of_few: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(of_slices)
    def method(self: Any, task: VTABTask, *args: Any, **options: Any) -> Any:
        if task.shots is not None:
            # a generator of images has no limit of its own to memory
            return of_few(FewShotSource(self, getattr(self, "memory", MEMORY)), task, *args, **options)
        return of_slices(self, task, *args, **options)

    return method


def is_train(split: str) -> bool:
    """Whether a split is the k images per class."""
    check_split(split)
    return split in ("train800", "train800val200")


def draw(task: VTABTask, labels: NDArray[np.int64]) -> Indices:
    """Our own draw: the ``shots`` images of each class whose md5 of set, shots, draw and position is smallest.

    `labels` are the classes of the images to draw from, (N,). Gives positions, ascending, (shots * num_classes,).
    DataError if a class has too few images.
    """
    salt = f"fewshot/{task.name}/{task.shots}/{task.draw}"
    ranks = [hashlib.md5(f"{salt}/{position}".encode()).digest() for position in range(len(labels))]
    order = np.array(sorted(range(len(labels)), key=ranks.__getitem__), dtype=np.int64)
    counts = np.bincount(labels, minlength=task.num_classes)
    shots = task.shots or 0
    if counts.min() < shots:
        raise DataError(f"task {task.name!r}: shots={shots}, but class {counts.argmin()} has {counts.min()} images")
    # stable: within a class the order of the hashes stays, so its first `shots` are the draw
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.sort(by_class[(starts[:, None] + np.arange(shots)).reshape(-1)])


def slices(task: VTABTask, split: str) -> list[VTABTask]:
    """One plain task per upstream slice behind a split; the slice is its ``test`` split."""
    part = "train" if is_train(split) else {"val200": "val", "test": "test"}[split]
    texts = [text.strip() for text in task.splits[part].split("+")]
    # without shots, or the source of the slices would draw from it once more
    return [replace(task, shots=None, group="own", splits=dict.fromkeys(("train", "val", "test"), t)) for t in texts]


class FewShotLists:
    """The list files of a few-shot set in ``<folder>/annotations``, its images in ``<folder>/images`` or the folder."""

    def __init__(self, folder: Path, task: VTABTask) -> None:
        self.folder, self.task = folder, task

    def file(self, split: str) -> Path | None:
        """The list behind a split: the published draw, or what our own is drawn from; None if neither is there."""
        names = {"val200": ["val_meta.list"], "test": ["test_meta.list"]}
        drawn = [f"train_meta.list.num_shot_{self.task.shots}.seed_{self.task.draw}", POOL]
        places = (self.folder / LISTS / name for name in names.get(split, drawn))
        return next((place for place in places if os.path.lexists(place)), None)

    def entries(self, split: str) -> list[ListedImage]:
        """Lines of a split; DataError if the list is missing or malformed."""
        file, task = self.file(split), self.task
        if file is None:
            wanted = POOL if is_train(split) else "val_meta.list" if split == "val200" else "test_meta.list"
            where = f"{LISTS}/{wanted} in {str(self.folder)!r}"
            raise DataError(f"task {task.name!r}: {split} needs {where}, which is not there")
        rows = read_list(file, task.num_classes)
        if is_train(split) and file.name == POOL:
            rows = [rows[i] for i in draw(task, np.array([row.label for row in rows], dtype=np.int64))]
        if not (self.folder / rows[0].path).exists() and (self.folder / "images").is_dir():
            rows = [replace(row, path=f"images/{row.path}") for row in rows]
        return rows

    def labels(self, contents: Contents) -> list[str]:
        """``own draw`` and ``unofficial split``, as far as they apply."""
        file = self.file("train800")
        labels = [OWN_DRAW] if file is not None and file.name == POOL else []
        return [*labels, UNOFFICIAL] if len(self.entries("test")) != self.task.num_test else labels
