"""FolderSource: a list-file tree, ``<root>/<folder>/<split>.txt`` and the images it names. Numpy, PIL and no torch.

Legend: N images, S the side of the square that the network sees.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwise.data import own
from headwise.data.bulk import MEMORY, check_memory
from headwise.data.decode import SHAPES, check_shape, decode_all
from headwise.data.pixels import CHUNK, FINAL_SPLITS, Pixels, decoder
from headwise.data.splits import subset
from headwise.data.stored import Facts, Reading
from headwise.data.stores.classfolders import ClassFolders, Parts, layout
from headwise.data.stores.fewshot import UNOFFICIAL, FewShotLists
from headwise.data.stores.gathered import gathered
from headwise.data.stores.labelsets import read_sets
from headwise.data.stores.listfiles import Contents, Digest, ListedImage, digests, locate, read_list
from headwise.data.tasks import VTABTask, check_split
from headwise.errors import DataError, suggest
from headwise.storage.atomic import at_home

LIST_NAMES = {
    "train800": ("train800.txt",),
    "val200": ("val200.txt",),
    "train800val200": ("train800val200.txt",),
    "test": ("test.txt",),
}
OWN_LIST_NAMES = {
    **LIST_NAMES,
    "val200": ("val200.txt", "val.txt", "val.csv", "val.tsv"),
    "train800val200": ("train800val200.txt", "train.txt", "train.csv", "train.tsv"),
    "test": ("test.txt", "test.csv", "test.tsv"),
}
"""Names of the list files; a user's own images may use the plain ones."""
SHOWN = 20
"""Folders that an error lists."""


def label_array(entries: Sequence[ListedImage], task: VTABTask) -> NDArray[np.int64]:
    """Classes of images, (N,); (N, K) of 0 and 1 where an image may have several."""
    if not task.multi_label:
        return np.array([entry.label for entry in entries], dtype=np.int64)
    labels = np.zeros((len(entries), task.num_classes), dtype=np.int64)
    for row, entry in enumerate(entries):
        labels[row, list(entry.classes)] = 1
    return labels


def as_pixels(
    images: NDArray[np.uint8], entries: Sequence[ListedImage], task: VTABTask, source: str, resize: str
) -> Pixels:
    """Decoded images, (N, H, W, C), with the classes and names that a list gives them, and where they come from."""
    keys = tuple(entry.path for entry in entries)
    return Pixels(images, label_array(entries, task), keys, {"source": source, "decoder": decoder(), "resize": resize})


class SplitLists:
    """The list files in a task's folder: ``<split>.txt``, of a user's own images also ``train.txt`` and ``val.txt``."""

    def __init__(self, folder: Path, task: VTABTask) -> None:
        self.folder, self.task = folder, task
        self.names = LIST_NAMES if task.is_official else OWN_LIST_NAMES

    def file(self, split: str) -> Path | None:
        """The list behind a split; None if it is not there."""
        return next((file for name in self.names[split] if os.path.lexists(file := self.folder / name)), None)

    def entries(self, split: str) -> list[ListedImage]:
        """Lines of a split. A user's own images without train800.txt use the train list without the val list."""
        file = self.file(split)
        if file is not None and self.task.multi_label:
            return read_sets(file, self.task.num_classes, self.task.class_names)
        if file is not None:
            return read_list(file, self.task.num_classes, self.task.class_names if self.task.is_own else ())
        if split == "train800" and not self.task.is_official:
            # ./a.png and a.png are one image
            held_out = {os.path.normpath(entry.path) for entry in self.entries("val200")}
            train = self.entries("train800val200")
            kept = [entry for entry in train if os.path.normpath(entry.path) not in held_out]
            if kept:
                return kept
        where = f"{' or '.join(self.names[split])} in {str(self.folder)!r}"
        raise DataError(f"task {self.task.name!r}: {split} needs {where}, which is not there")

    def labels(self, contents: Contents) -> list[str]:
        """What the lists say of the task: ``own data`` and what is odd about it, or how they differ from upstream's."""
        task = self.task
        if task.is_own:
            return ["own data", *own.labels(contents), *([own.SEVERAL] if task.multi_label else [])]
        if not task.is_official:
            return ["own data"]
        labels = self.count_labels({split: len(rows) for split, rows in contents.items()})
        if {"train800", "val200", "train800val200"} <= contents.keys():
            classes = {split: Counter(entry.label for entry, _ in rows) for split, rows in contents.items()}
            if classes["train800"] + classes["val200"] != classes["train800val200"]:
                labels.append("inconsistent train lists")
        return labels

    def count_labels(self, counts: Mapping[str, int]) -> list[str]:
        """``unofficial split`` where there are other numbers of images, by split, than upstream's."""
        return [UNOFFICIAL] if any(n != self.task.official_count(split) for split, n in counts.items()) else []


class FolderSource:
    """The list-file tree that most VTAB-1k code reads: ``<root>/<folder>/<split>.txt`` and images.

    Args:
        root: folder that holds the tasks' folders.
        memory: GiB of decoded images of one split that are held in memory (see `headwise.data.bulk`).
        resize: what becomes of images that are no squares: squash, crop or pad (see `headwise.data.decode.squared`).
    Raises:
        DataError: if ``root`` is no folder.
    """

    def __init__(self, root: str | Path, memory: float = MEMORY, resize: str = SHAPES[0]) -> None:
        self.root, self.memory = at_home(root), check_memory(memory)
        self.shape = check_shape(resize)
        self._layouts: dict[Path, Parts] = {}
        if not str(root).strip() or not os.path.isdir(self.root):  # noqa: PTH112 - no path makes it raise
            raise DataError(
                f"data.root={str(root)[:300]!r} is not a folder; give the one that holds the tasks' folders"
            )

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the lines of the list files and of the bytes of their images.

        Of a user's own images also of how their pixels are read, where that is not as they are stored.

        Raises:
            DataError: if a list or an image is missing, or a user's own image has two labels.
        """
        facts, depth = self._looked_at(task) if task.is_own else ({}, None)
        sha = hashlib.sha256(b"folder/1\n")
        if self.shape != SHAPES[0]:
            sha.update(f"resize {self.shape}\n".encode())
        for split in splits:
            sha.update(f"{split}\n".encode())
            for entry, digest in self._digests(task, split):
                mark = own.reading_mark(facts[digest.sha256], depth) if task.is_own else ""
                sha.update(f"{entry.path} {entry.label} {digest.sha256}{mark}\n".encode())
        return sha.hexdigest()

    def depth(self, task: VTABTask) -> int | None:
        """Bits of a value of a user's own images of more than 8 bits, stated or found; None if there are none."""
        return self._looked_at(task)[1] if task.is_own else None

    def labels(self, task: VTABTask) -> list[str]:
        """``own data``, ``own draw``, ``unofficial split``, ``inconsistent train lists``, ``lossy``, as they apply.

        Of a user's own images ``test images in train: N`` as well.
        """
        contents = self._contents(task)
        is_lossy = any(self._is_lossy(task, *row) for rows in contents.values() for row in rows)
        return [*self.lists(task).labels(contents), *(["lossy"] if is_lossy else [])]

    def count_labels(self, task: VTABTask) -> list[str]:
        """Of an official task's `labels` those that need no image: ``unofficial split`` or none."""
        lists = SplitLists(self.folder(task), task)
        return lists.count_labels({split: len(lists.entries(split)) for split in LIST_NAMES if lists.file(split)})

    def count(self, task: VTABTask, split: str) -> int:
        """Number of lines of the split's list file."""
        return len(self._entries(task, split))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Decode the images that a list file names, in its order."""
        entries = self._entries(task, split)
        chosen = [entries[i] for i in subset(len(entries), limit)]
        if task.is_own:
            contents = self._contents(task)
            facts, depth = self._looked_at(task, contents)
            own.announce(contents, task, depth, facts)
        how = size, resize
        return gathered(self, task, split, how, len(chosen), lambda: self._chunks(task, chosen, *how), f"{limit}")

    def chunks(self, task: VTABTask, split: str, size: int, resize: str) -> Iterator[Pixels]:
        return self._chunks(task, self._entries(task, split), size, resize)

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split, as its list file gives them; (N, K) of 0 and 1 where images have several."""
        return label_array(self._entries(task, split), task)

    def origin(self, task: VTABTask) -> dict[str, str]:
        """Plain facts that a cache records. Every task has images of its own here."""
        return {"kind": "folder", "name": task.name}

    def _chunks(self, task: VTABTask, entries: list[ListedImage], size: int, resize: str) -> Iterator[Pixels]:
        reading = Reading(self.depth(task)) if task.is_own else None
        for start in range(0, len(entries), CHUNK):
            yield self._decode(task, entries[start : start + CHUNK], size, resize, reading)

    def _decode(
        self, task: VTABTask, entries: list[ListedImage], size: int, resize: str, reading: Reading | None
    ) -> Pixels:
        located = locate(entries, self.folder(task), self.root)
        files = [(path, entry.where) for entry, (path, _) in zip(entries, located, strict=True)]
        images, native = decode_all(files, task.channels, size, resize, reading=reading, shape=self.shape)
        return as_pixels(images, entries, task, "folder", "native" if native else resize)

    def folder(self, task: VTABTask) -> Path:
        """The task's folder under the root; DataError if none of the task's folder names exists, listing what does."""
        root = Path(os.path.realpath(self.root))
        for name in task.folders:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"task {task.name!r}: folder {name!r} leaves the data root {str(self.root)!r}")
            if (root / name).is_dir():
                return root / name
        present = sorted(path.name for path in root.iterdir() if path.is_dir())
        near = suggest(task.folders[0], present).partition("; allowed")[0]
        there = f"; there are the folders {', '.join(present[:SHOWN])}" + (", ..." if len(present) > SHOWN else "")
        # train and test lists in the root itself: a task's folder was named in place of the one around it
        if any(root.glob("t*.txt")):
            there = f"; the root itself holds list files: did you mean {str(root.parent)!r}?"
        raise DataError(
            f"no folder for task {task.name!r} in {str(self.root)!r}: looked for {', '.join(task.folders)}"
            f"{near}{there if present or 'did you mean' in there else '; there is no folder in it'}"
        )

    def has_lists(self, task: VTABTask) -> bool:
        """Whether the task's folder is there and holds a list file."""
        try:
            lists = self.lists(task)
            return any(lists.file(split) is not None for split in LIST_NAMES)
        except DataError:
            return False

    def lists(self, task: VTABTask) -> SplitLists | FewShotLists | ClassFolders:
        """What lies in the task's folder: list files, or of a user's own images class folders."""
        folder = self.folder(task)
        if task.shots is not None:
            return FewShotLists(folder, task)
        lists = SplitLists(folder, task)
        if not task.is_own or any(lists.file(split) is not None for split in LIST_NAMES):
            return lists
        # a source belongs to one run: its folder is walked through once
        if folder not in self._layouts:
            self._layouts[folder] = layout(folder)
        parts = self._layouts[folder]
        if parts and task.multi_label:
            raise DataError(
                f"{str(folder)!r}: class folders give an image one label; dataset.multi_label needs a train.csv "
                "and a test.csv"
            )
        return ClassFolders(folder, task, parts) if parts else lists

    def _entries(self, task: VTABTask, split: str) -> list[ListedImage]:
        check_split(split)
        return self.lists(task).entries(split)

    def _digests(self, task: VTABTask, split: str) -> list[tuple[ListedImage, Digest]]:
        entries = self._entries(task, split)
        return list(zip(entries, digests(entries, self.folder(task), self.root), strict=True))

    def _contents(self, task: VTABTask) -> dict[str, list[tuple[ListedImage, Digest]]]:
        """Every list with the content of what it names; of a user's own images also the derived train800."""
        lists = self.lists(task)
        contents = {split: self._digests(task, split) for split in LIST_NAMES if lists.file(split) is not None}
        if task.is_own and "val200" in contents and "train800" not in contents:
            with suppress(DataError):  # all training images are in the validation list; whoever needs train800 says so
                contents["train800"] = self._digests(task, "train800")
        return contents

    def _looked_at(self, task: VTABTask, contents: Contents | None = None) -> tuple[dict[str, Facts], int | None]:
        """What own images say of themselves, by content, and the bits of deep ones; DataError if one has two labels."""
        contents = self._contents(task) if contents is None else contents
        own.check(contents, task)
        folder = self.folder(task)
        files = {digest.sha256: folder / entry.path for rows in contents.values() for entry, digest in rows}
        facts = own.look(contents, files, folder)
        return facts, own.depth_of(task, facts)

    @staticmethod
    def _is_lossy(task: VTABTask, entry: ListedImage, digest: Digest) -> bool:
        """A JPEG of what upstream stores without loss, or one that an exporter has written again as 000000.jpg."""
        numbered = task.is_official and re.search(r"(^|/)images/\w+/\d{6}\.\w+$", entry.path) is not None
        return digest.is_jpeg and (task.encoding == "lossless" or numbered)
