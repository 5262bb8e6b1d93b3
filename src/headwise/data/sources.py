"""Where pixels come from: a list-file tree, a generator, or whichever of them is there. One interface.

Numpy, PIL and the standard library only: a finished run is recognised by its fingerprint before torch is imported.
Pixels leave here as uint8; normalisation belongs to the data module.

Legend: N images, S the side of the square that the network sees, C channels (3, or 1 for grey tasks).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headwise.data import labels as label_rules
from headwise.data.decode import decode_all, fit_all
from headwise.data.listfiles import Digest, Entry, digests, locate, read_list
from headwise.data.splits import Indices, record_order, split_ranges, subset
from headwise.data.tasks import VTABTask, check_split
from headwise.errors import DataError, suggest

log = logging.getLogger(__name__)

FINAL_SPLITS = ("train800val200", "test")
LIST_NAMES = {
    "train800": ("train800.txt",),
    "val200": ("val200.txt",),
    "train800val200": ("train800val200.txt",),
    "test": ("test.txt",),
}
OWN_LIST_NAMES = {
    **LIST_NAMES,
    "val200": ("val200.txt", "val.txt"),
    "train800val200": ("train800val200.txt", "train.txt"),
}
"""Names of the list files; a user's own images may use the plain ones."""


@dataclass(frozen=True)
class Pixels:
    """Images of one split with their classes.

    Args:
        images: (N, S, S, C) uint8, or (N, H, W, C) where small images keep their native size.
        labels: (N,) int64.
        keys: what identifies each image in its source, such as its relative path.
        provenance: source, decoder and resize, as plain values for the result file.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Something that has the images of tasks."""

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of everything that decides labels and pixels before resizing; never of where files lie."""
        ...

    def labels(self, task: VTABTask) -> list[str]:
        """What a reader must know about numbers made with these images: synthetic, unofficial split, lossy."""
        ...

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of a split; reads none of them."""
        ...

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Read a split, or a fixed subset of ``limit`` images of it (see ``headwise.data.splits.subset``)."""
        ...


class FolderSource:
    """The list-file tree that most VTAB-1k code reads: ``<root>/<folder>/<split>.txt`` and images.

    Args:
        root: folder that holds the tasks' folders.
    Raises:
        DataError: if ``root`` is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"data.root={str(root)!r} is not a folder; give the one that holds the tasks' folders")

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the lines of the list files and of the bytes of their images."""
        sha = hashlib.sha256(b"folder/1\n")
        for split in splits:
            sha.update(f"{split}\n".encode())
            for entry, digest in self._digests(task, split):
                sha.update(f"{entry.path} {entry.label} {digest.sha256}\n".encode())
        return sha.hexdigest()

    def labels(self, task: VTABTask) -> list[str]:
        """``own data``, ``unofficial split``, ``inconsistent train lists``, ``lossy``, as far as they apply."""
        lists = {split: self._entries(task, split) for split in LIST_NAMES if self._list_file(task, split) is not None}
        found = []
        if not task.is_official:
            found.append("own data")
        elif any(len(entries) != task.official_count(split) for split, entries in lists.items()):
            found.append("unofficial split")
        if task.is_official and {"train800", "val200", "train800val200"} <= lists.keys():
            parts = Counter(entry.label for split in ("train800", "val200") for entry in lists[split])
            if parts != Counter(entry.label for entry in lists["train800val200"]):
                found.append("inconsistent train lists")
        if any(self._is_lossy(task, entry, digest) for split in lists for entry, digest in self._digests(task, split)):
            found.append("lossy")
        return found

    def count(self, task: VTABTask, split: str) -> int:
        """Number of lines of the split's list file."""
        return len(self._entries(task, split))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Decode the images that a list file names, in its order."""
        entries = self._entries(task, split)
        entries = [entries[i] for i in subset(len(entries), limit)]
        found = locate(entries, self.folder(task), self.root)
        files = [(path, entry.where) for entry, (path, _) in zip(entries, found, strict=True)]
        images, native = decode_all(files, task.channels, size, resize)
        return Pixels(
            images,
            np.array([entry.label for entry in entries], dtype=np.int64),
            tuple(entry.path for entry in entries),
            {"source": "folder", "decoder": f"pillow {_pillow_version()}", "resize": "native" if native else resize},
        )

    def folder(self, task: VTABTask) -> Path:
        """The task's folder under the root.

        Raises:
            DataError: if none of the task's folder names exists, listing what does.
        """
        root = self.root.resolve()
        for name in task.folders:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"task {task.name!r}: folder {name!r} leaves the data root {str(self.root)!r}")
            if (root / name).is_dir():
                return root / name
        present = [path.name for path in root.iterdir() if path.is_dir()]
        hint = f"; the root itself holds list files: did you mean {str(root.parent)!r}?"
        raise DataError(
            f"no folder for task {task.name!r} in {str(self.root)!r}: looked for {', '.join(task.folders)}"
            f"{hint if any(root.glob('t*.txt')) else suggest(task.folders[0], present)}"
        )

    def _list_file(self, task: VTABTask, split: str) -> Path | None:
        names = (LIST_NAMES if task.is_official else OWN_LIST_NAMES)[split]
        return next((file for name in names if (file := self.folder(task) / name).is_file()), None)

    def _entries(self, task: VTABTask, split: str) -> list[Entry]:
        """Lines of a split. A user's own images without train800.txt use the train list without the val list."""
        check_split(split)
        file = self._list_file(task, split)
        if file is not None:
            return read_list(file, task.num_classes)
        if split == "train800" and not task.is_official:
            held_out = {entry.path for entry in self._entries(task, "val200")}
            kept = [entry for entry in self._entries(task, "train800val200") if entry.path not in held_out]
            if kept:
                return kept
        names = " or ".join((LIST_NAMES if task.is_official else OWN_LIST_NAMES)[split])
        raise DataError(f"task {task.name!r}: {split} needs {names} in {str(self.folder(task))!r}, which is not there")

    def _digests(self, task: VTABTask, split: str) -> list[tuple[Entry, Digest]]:
        entries = self._entries(task, split)
        return list(zip(entries, digests(entries, self.folder(task), self.root), strict=True))

    @staticmethod
    def _is_lossy(task: VTABTask, entry: Entry, digest: Digest) -> bool:
        """A JPEG of what upstream stores without loss, or one that an exporter has written again as 000000.jpg."""
        numbered = task.is_official and re.search(r"(^|/)images/\w+/\d{6}\.\w+$", entry.path) is not None
        return digest.is_jpeg and (task.encoding == "lossless" or numbered)


class SyntheticSource:
    """Images drawn by ``headwise.data.synthetic.<builder>``, in upstream's own split."""

    def has(self, task: VTABTask) -> bool:
        """Whether there is a generator for the task."""
        return (
            task.builder is not None and importlib.util.find_spec(f"headwise.data.synthetic.{task.builder}") is not None
        )

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the generator's name and revision and of the rules that choose and label its images."""
        generator = self._generator(task)
        parts = [task.builder, generator.REVISION, generator.SIZES, task.splits, task.label_key, task.label_rule]
        return hashlib.sha256(json.dumps(["synthetic/1", *parts, list(splits)], sort_keys=True).encode()).hexdigest()

    def labels(self, task: VTABTask) -> list[str]:
        """Always ``synthetic``."""
        return ["synthetic"]

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of the split."""
        return sum(last - first for _, first, last in split_ranges(task, split, self._generator(task).SIZES))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Draw a split, in the order of upstream's records."""
        generator = self._generator(task)
        runs = split_ranges(task, split, generator.SIZES)
        members = [(name, position) for name, first, last in runs for position in range(first, last)]
        chosen = [members[i] for i in subset(len(members), limit)]
        pieces, classes, keys = [], [], []
        for name in dict.fromkeys(name for name, _ in chosen):
            positions = np.array([position for other, position in chosen if other == name], dtype=np.int64)
            indices = _order(generator, name)[positions]
            pieces.append(generator.render(name, indices))
            examples = generator.examples(name, indices)
            if task.label_rule is None:
                classes += [int(example[task.label_key]) for example in examples]
            else:
                classes += [label_rules.rule(task.label_rule)(example) for example in examples]
            keys += [generator.key(name, int(index)) for index in indices]
        source = f"synthetic:{task.builder}@{generator.REVISION}"
        images, native = fit_all(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), size, resize)
        return Pixels(
            images,
            np.array(classes, dtype=np.int64),
            tuple(keys),
            {"source": source, "decoder": "none", "resize": "native" if native else resize},
        )

    def _generator(self, task: VTABTask) -> ModuleType:
        if not self.has(task):
            raise DataError(f"there is no generator for task {task.name!r}; use data=folder data.root=PATH")
        return importlib.import_module(f"headwise.data.synthetic.{task.builder}")


@lru_cache(maxsize=4)
def _order(generator: ModuleType, split: str) -> Indices:
    """Order of a generator's examples in upstream's records."""
    return record_order(split, (generator.key(split, i) for i in range(generator.SIZES[split])))


class AutoSource:
    """The first of these that has the task: the list-file tree under ``root`` if one is given, a generator.

    Args:
        root: folder of a list-file tree, or None.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.folder = None if root is None else FolderSource(root)
        self.synthetic = SyntheticSource()
        self._chosen: dict[str, FolderSource | SyntheticSource] = {}

    def resolve(self, task: VTABTask) -> FolderSource | SyntheticSource:
        """The source that is used for a task; the choice is made and logged once.

        Raises:
            DataError: if no source has the task, saying what to do.
        """
        if task.name not in self._chosen:
            self._chosen[task.name] = self._choose(task)
        return self._chosen[task.name]

    def _choose(self, task: VTABTask) -> FolderSource | SyntheticSource:
        if self.folder is not None:
            try:
                found = self.folder.folder(task)
            except DataError as error:
                if not self.synthetic.has(task):
                    raise
                log.warning("%s; using the generator of %r instead", error, task.builder)
            else:
                log.info("data=auto: task %r is read from %s", task.name, found)
                return self.folder
        if not self.synthetic.has(task):
            raise DataError(
                f"no images for task {task.name!r}: give a list-file tree with data.root=PATH "
                f"(it needs the folder {task.folders[0]!r}); there is no generator for this task"
            )
        log.info("data=auto: task %r is drawn by the generator of %r", task.name, task.builder)
        return self.synthetic

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """That of the source in use."""
        return self.resolve(task).fingerprint(task, splits)

    def labels(self, task: VTABTask) -> list[str]:
        """Those of the source in use."""
        return self.resolve(task).labels(task)

    def count(self, task: VTABTask, split: str) -> int:
        """That of the source in use."""
        return self.resolve(task).count(task, split)

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """As the source in use."""
        return self.resolve(task).load(task, split, size, resize, limit)


def _pillow_version() -> str:
    return importlib.import_module("PIL").__version__
