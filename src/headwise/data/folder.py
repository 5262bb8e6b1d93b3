"""FolderSource: a list-file tree, ``<root>/<folder>/<split>.txt`` and the images it names. Numpy, PIL and no torch.

Legend: N images, S the side of the square that the network sees.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwise.atomic import at_home
from headwise.data import fewshot, own
from headwise.data.decode import decode_all
from headwise.data.listfiles import Digest, Entry, digests, locate, read_list
from headwise.data.pixels import CHUNK, FINAL_SPLITS, Pixels, decoder
from headwise.data.splits import subset
from headwise.data.stored import Facts, Reading
from headwise.data.tasks import VTABTask, check_split
from headwise.errors import DataError, suggest

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
SHOWN = 20
"""Folders that an error lists."""


class FolderSource:
    """The list-file tree that most VTAB-1k code reads: ``<root>/<folder>/<split>.txt`` and images.

    Args:
        root: folder that holds the tasks' folders.
    Raises:
        DataError: if ``root`` is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = at_home(root)
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
        lists = {split: self._entries(task, split) for split in LIST_NAMES if self._list_file(task, split) is not None}
        found = []
        if task.shots is not None:
            found += fewshot.list_labels(self.folder(task), task)
        elif not task.is_official:
            found += ["own data", *(own.labels(self._lists(task)) if task.is_own else [])]
        elif any(len(entries) != task.official_count(split) for split, entries in lists.items()):
            found.append("unofficial split")
        if task.is_official and task.shots is None and {"train800", "val200", "train800val200"} <= lists.keys():
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
        if task.is_own:
            lists = self._lists(task)
            facts, depth = self._looked_at(task, lists)
            own.announce(lists, task, depth, facts)
        return self._decode(task, [entries[i] for i in subset(len(entries), limit)], size, resize)

    def chunks(self, task: VTABTask, split: str, size: int, resize: str) -> Iterator[Pixels]:
        """The images of a split in its order, some hundred at a time."""
        entries = self._entries(task, split)
        for start in range(0, len(entries), CHUNK):
            yield self._decode(task, entries[start : start + CHUNK], size, resize)

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split, as its list file gives them."""
        return np.array([entry.label for entry in self._entries(task, split)], dtype=np.int64)

    def origin(self, task: VTABTask) -> dict[str, str]:
        """Plain facts that a cache records. Every task has images of its own here."""
        return {"kind": "folder", "name": task.name}

    def _decode(self, task: VTABTask, entries: list[Entry], size: int, resize: str) -> Pixels:
        found = locate(entries, self.folder(task), self.root)
        files = [(path, entry.where) for entry, (path, _) in zip(entries, found, strict=True)]
        reading = Reading(self.depth(task)) if task.is_own else None
        images, native = decode_all(files, task.channels, size, resize, reading=reading)
        return Pixels(
            images,
            np.array([entry.label for entry in entries], dtype=np.int64),
            tuple(entry.path for entry in entries),
            {"source": "folder", "decoder": decoder(), "resize": "native" if native else resize},
        )

    def folder(self, task: VTABTask) -> Path:
        """The task's folder under the root.

        Raises:
            DataError: if none of the task's folder names exists, listing what does.
        """
        root = Path(os.path.realpath(self.root))
        for name in task.folders:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(f"task {task.name!r}: folder {name!r} leaves the data root {str(self.root)!r}")
            if (root / name).is_dir():
                return root / name
        present = sorted(path.name for path in root.iterdir() if path.is_dir())
        near = suggest(task.folders[0], present).partition("; allowed")[0]
        there = f"; there are the folders {', '.join(present[:SHOWN])}" + (", ..." if len(present) > SHOWN else "")
        if any(root.glob("t*.txt")):
            there = f"; the root itself holds list files: did you mean {str(root.parent)!r}?"
        raise DataError(
            f"no folder for task {task.name!r} in {str(self.root)!r}: looked for {', '.join(task.folders)}"
            f"{near}{there if present or 'did you mean' in there else '; there is no folder in it'}"
        )

    def has_lists(self, task: VTABTask) -> bool:
        """Whether the task's folder is there and holds a list file."""
        try:
            return any(self._list_file(task, split) is not None for split in LIST_NAMES)
        except DataError:
            return False

    def _list_file(self, task: VTABTask, split: str) -> Path | None:
        if task.shots is not None:
            return fewshot.list_file(self.folder(task), task, split)
        names = (LIST_NAMES if task.is_official else OWN_LIST_NAMES)[split]
        return next((file for name in names if (file := self.folder(task) / name).is_file()), None)

    def _entries(self, task: VTABTask, split: str) -> list[Entry]:
        """Lines of a split. A user's own images without train800.txt use the train list without the val list."""
        check_split(split)
        if task.shots is not None:
            return fewshot.entries(self.folder(task), task, split)
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

    def _lists(self, task: VTABTask) -> dict[str, list[tuple[Entry, Digest]]]:
        """Every list of a user's own images with the content of what it names; also the derived train800."""
        splits = [split for split in LIST_NAMES if self._list_file(task, split) is not None]
        lists = {split: self._digests(task, split) for split in splits}
        if "val200" in lists and "train800" not in lists:
            with suppress(DataError):  # all training images are in the validation list; whoever needs train800 says so
                lists["train800"] = self._digests(task, "train800")
        return lists

    def _looked_at(self, task: VTABTask, lists: own.Lists | None = None) -> tuple[dict[str, Facts], int | None]:
        """What a user's own images say of themselves, by their content, and the bits of a value of the deep ones.

        Raises:
            DataError: if an image has two labels.
        """
        lists = self._lists(task) if lists is None else lists
        own.check(lists, task)
        folder = self.folder(task)
        files = {digest.sha256: folder / entry.path for rows in lists.values() for entry, digest in rows}
        facts = own.look(lists, files, folder)
        return facts, own.depth_of(task, facts)

    @staticmethod
    def _is_lossy(task: VTABTask, entry: Entry, digest: Digest) -> bool:
        """A JPEG of what upstream stores without loss, or one that an exporter has written again as 000000.jpg."""
        numbered = task.is_official and re.search(r"(^|/)images/\w+/\d{6}\.\w+$", entry.path) is not None
        return digest.is_jpeg and (task.encoding == "lossless" or numbered)
