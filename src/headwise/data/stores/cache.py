"""CacheSource: decoded images as memory-mapped arrays, one folder per upstream set, shared by the tasks on it.

Layout of ``<root>/<set>@<version>-<kind>-<pixels>/``: ``<split>.npy`` for train800, val200 and test, and of a list-file
tree for train800val200, whose list has an order and files of its own; ``labels.<task>.<split>.npy``, ``keys.txt`` and
``meta.json`` with a hash of each. ``pixels`` is ``native`` or
``<size>-<resize>``. Nothing in it is lossy, and it has the fingerprint of what it was made from, so results do not
depend on whether a cache was used. `headwise.data.preparing.cachebuild` writes it. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.decode import check_resize
from headwise.data.pixels import FINAL_SPLITS, Pixels
from headwise.data.splits import subset
from headwise.data.tasks import NAME, SPLITS, VTABTask, check_split
from headwise.errors import DataError
from headwise.storage import plain
from headwise.storage.atomic import at_home
from headwise.storage.hashes import cache_folder, file_sha256, sha256_of

SCHEMA = 1
PARTS = {
    "tfds": ("train800", "val200", "test"),
    "folder": ("train800", "val200", "train800val200", "test"),
    "synthetic": ("train800", "val200", "test"),
}
"""Splits that are stored, by what a cache may be made from, the preferred first. Where train800val200 is none of them,
it is train800, then val200."""
KINDS = tuple(PARTS)
META = "meta.json"


def default_root() -> Path:
    """Where caches lie unless told otherwise: ``$HEADWISE_CACHE/vtab``."""
    return cache_folder() / "vtab"


def rules(task: VTABTask) -> str:
    """Hash of what decides which images and classes a task has in its upstream set."""
    parts = [dict(task.splits), task.image_key, task.label_key, task.label_rule, task.num_classes, task.channels]
    return hashlib.sha256(json.dumps([*parts, task.pixel_scale], sort_keys=True).encode()).hexdigest()[:16]


def pixels_name(size: int | None, resize: str) -> str:
    """``native``, or what the images were brought to."""
    return "native" if size is None else f"{size}-{resize}"


_SHA256 = plain.matching(r"[0-9a-f]{64}", "a sha256")
_ARRAY = plain.fields(
    {"shape": plain.each(plain.count), "dtype": plain.matching("uint8|int64", "uint8 or int64")}
    | {"bytes": plain.count, "sha256": _SHA256}
)
_SPLITS = plain.every(_ARRAY, key=plain.matching("|".join(SPLITS), "a split"))
_TASK = plain.fields(
    {"rules": plain.text, "num_classes": plain.count, "labels": plain.each(plain.text), "splits": _SPLITS}
    | {"fingerprints": plain.every(plain.text)}
)
_META = plain.fields(
    {
        "kind": plain.matching("|".join(PARTS), f"one of {', '.join(PARTS)}"),
        "pixels": plain.text,
        "facts": plain.every(plain.scalar),
        "splits": _SPLITS,
        "tasks": plain.every(_TASK, key=plain.matching(NAME, "a task's name")),
        "keys": _SHA256,
    }
)
"""What META must hold: names of files are made of its keys, so a key is a split's or a task's name."""


@dataclass(frozen=True)
class Cache:
    """One cache folder whose description, `meta`, could be read."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Cache:
        """Read the description of a cache; DataError if it is damaged or of another layout."""
        try:
            meta = plain.read_json(path / META)
            plain.mapping(meta, META)
            if (layout := meta.get("schema")) != SCHEMA:
                raise DataError(f"cache {path}: has layout {layout!r}, this version reads {SCHEMA}; {_again(path)}")
            _META(meta, "")
        except (OSError, plain.Misfit) as error:
            raise DataError(f"cache {path}: {META} is damaged ({error}); {_again(path)}") from error
        if set(PARTS[meta["kind"]]) != set(meta["splits"]):
            raise DataError(f"cache {path}: does not hold {', '.join(PARTS[meta['kind']])}; {_again(path)}")
        return cls(path, meta)

    def holds(self, task: VTABTask) -> bool:
        """Whether the task is in it; DataError if it was built for another definition of the task."""
        entry = self.meta["tasks"].get(task.name)
        if entry is not None and entry["rules"] != rules(task):
            raise DataError(
                f"cache {self.path}: was built for another definition of task {task.name!r} (splits, label rule or "
                f"classes); {_again(self.path)}"
            )
        return entry is not None

    def array(self, name: str, entry: dict[str, Any], again: bool = False) -> NDArray[Any]:
        """A stored array, memory-mapped; its content is hashed when it is opened for the first time since it changed.

        Raises:
            DataError: if it is missing, cut off, of another shape, or its content is not what was written.
        """
        file = self.path / name
        try:
            if file.stat().st_size != entry["bytes"]:
                raise ValueError(f"it has {file.stat().st_size} bytes instead of {entry['bytes']}")
            if (sha256_of(file) if again else file_sha256(file)) != entry["sha256"]:
                raise ValueError("its content is not what was written")
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):  # an archive of several, which numpy reads under any name
                raise ValueError("it is no array")
            if list(array.shape) != entry["shape"] or array.dtype != entry["dtype"]:
                raise ValueError(f"it holds {array.dtype} {array.shape}")
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"cache {self.path}: {name} is damaged ({error}); {_again(self.path)}") from error
        return array

    def check(self, again: bool = False) -> None:
        """Check every file; DataError for the first that is damaged.

        With `again` every byte is read, also of files that did not change since they were read last.
        """
        for part in self.parts:
            images = self.array(f"{part}.npy", self.meta["splits"][part], again)
            for name, task in self.meta["tasks"].items():
                labels = self.array(label_file(name, part), task["splits"][part])
                if len(labels) != len(images) or labels.min() < 0 or labels.max() >= task["num_classes"]:
                    raise DataError(f"cache {self.path}: labels of {name!r} do not fit its images; {_again(self.path)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Splits that are stored."""
        return PARTS[self.meta["kind"]]

    def parts_of(self, split: str) -> tuple[str, ...]:
        """The stored splits that make up a split."""
        check_split(split)
        return (split,) if split in self.parts else ("train800", "val200")

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())


def label_file(task: str, part: str) -> str:
    """Name of the file with a task's classes."""
    return f"labels.{task}.{part}.npy"


def candidates(root: Path, task: VTABTask, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Cache folders that may hold a task, by kind and by preference of version, whatever their pixels are."""
    if not os.path.isdir(root):  # noqa: PTH112 - no path makes it raise
        return []
    # names that begin with a dot are of caches that are being built
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    builder = task.builder if task.config is None else f"{task.builder}.{task.config}"
    preferred: list[Path] = []
    for kind in kinds:
        patterns = [f"{task.name}-folder-*"] if kind == "folder" else []
        if kind != "folder" and task.builder is not None:
            patterns = [f"{builder}@{version}-{kind}-*" for version in task.versions]
        for pattern in patterns:
            matching = [path for path in folders if fnmatchcase(path.name, pattern) and path not in preferred]
            # of the versions that one pattern allows the newest first
            preferred += reversed(matching)
    return preferred


class CacheSource:
    """Decoded images that ``scripts/prepare_vtab.py`` has stored.

    Args:
        root: folder of all caches; None: ``$HEADWISE_CACHE/vtab``.
        kinds: what the caches in use may be made from, the preferred one first: tfds, folder, synthetic.

    Raises:
        DataError: if something else than a folder is named.
    """

    def __init__(self, root: str | Path | None = None, kinds: Sequence[str] = KINDS) -> None:
        self.root = default_root() if root is None else at_home(root)
        if root is not None and plain.is_blocked(self.root):
            raise DataError(f"the caches' folder {str(root)[:300]!r} is none; leave it out for $HEADWISE_CACHE/vtab")
        self.kinds = tuple(kinds)
        self._caches: dict[str, list[Cache]] = {}

    def has(self, task: VTABTask) -> bool:
        """Whether there is a cache of the task, of whatever size; DataError if one is damaged or foreign."""
        return bool(self._of(task))

    def has_size(self, task: VTABTask, size: int, resize: str) -> bool:
        """Whether images are there for a network of ``size`` pixels: native ones, or resized to it."""
        return self._sized(task, size, resize) is not None

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """That of the source the cache was made from."""
        cache = self._first(task)
        fingerprints = cache.meta["tasks"][task.name]["fingerprints"]
        if " ".join(splits) not in fingerprints:
            raise DataError(f"cache {cache.path}: knows no fingerprint of {', '.join(splits)}; {_again(cache.path)}")
        return str(fingerprints[" ".join(splits)])

    def labels(self, task: VTABTask) -> list[str]:
        """Those of the source the cache was made from."""
        return list(self._first(task).meta["tasks"][task.name]["labels"])

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of the split."""
        cache = self._first(task)
        return sum(int(cache.meta["splits"][part]["shape"][0]) for part in cache.parts_of(split))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Images of a split. Those of one part stay on disk and are read when they are used."""
        check_resize(resize)
        cache = self._sized(task, size, resize)
        if cache is None:
            there = ", ".join(sorted(cache.meta["pixels"] for cache in self._of(task))) or "nothing"
            raise DataError(
                f"cache of task {task.name!r} in {str(self.root)!r}: holds {there}, the run needs "
                f"{pixels_name(size, resize)}; run: python scripts/prepare_vtab.py --tasks {task.name} "
                f"--size {size} --resize {resize}"
            )
        meta = cache.meta
        images = [cache.array(f"{part}.npy", meta["splits"][part]) for part in cache.parts_of(split)]
        stored = meta["tasks"][task.name]["splits"]
        classes = np.concatenate([cache.array(label_file(task.name, p), stored[p]) for p in cache.parts_of(split)])
        whole = images[0] if len(images) == 1 else np.concatenate(images)
        if len(whole) != len(classes) or classes.min() < 0 or classes.max() >= task.num_classes:
            raise DataError(f"cache {cache.path}: labels of {task.name!r} do not fit its images; {_again(cache.path)}")
        keys = self._keys(cache, split)
        if limit is not None:
            chosen = subset(len(whole), limit)
            whole, classes, keys = whole[chosen], classes[chosen], tuple(keys[i] for i in chosen)
        facts = {
            **meta["facts"],
            "resize": "native" if meta["pixels"] == "native" else resize,
            "cache": cache.path.name,
        }
        return Pixels(whole, np.asarray(classes, dtype=np.int64), keys, facts)

    def _keys(self, cache: Cache, split: str) -> tuple[str, ...]:
        file = cache.path / "keys.txt"
        try:
            data = file.read_bytes() if file.is_file() else b""
        except OSError as error:
            raise DataError(f"cache {cache.path}: keys.txt is missing; {_again(cache.path)}") from error
        if hashlib.sha256(data).hexdigest() != cache.meta["keys"]:
            raise DataError(f"cache {cache.path}: keys.txt is damaged; {_again(cache.path)}")
        keys: dict[str, list[str]] = {part: [] for part in cache.parts}
        # not splitlines: a key may be a path, which may hold the other ends of lines
        for line in data.decode("utf-8", "replace").split("\n")[:-1]:
            part, _, key = line.partition(" ")
            if part in keys:
                keys[part].append(key)
        return tuple(key for part in cache.parts_of(split) for key in keys[part])

    def _of(self, task: VTABTask) -> list[Cache]:
        if task.name not in self._caches:
            opened = [Cache.open(path) for path in candidates(self.root, task, self.kinds)]
            self._caches[task.name] = [cache for cache in opened if cache.holds(task)]
        return self._caches[task.name]

    def _first(self, task: VTABTask) -> Cache:
        caches = self._of(task)
        if not caches:
            raise DataError(
                f"no cache of task {task.name!r} in {str(self.root)!r}; run: python scripts/prepare_vtab.py "
                f"--tasks {task.name}"
            )
        return caches[0]

    def _sized(self, task: VTABTask, size: int, resize: str) -> Cache | None:
        """A cache with these pixels that is of the same content as the one that gives the fingerprint."""
        wanted = {"native", pixels_name(size, resize)}
        same = self._first(task).meta["tasks"][task.name]["fingerprints"]
        fitting = [cache for cache in self._of(task) if cache.meta["pixels"] in wanted]
        return next((cache for cache in fitting if cache.meta["tasks"][task.name]["fingerprints"] == same), None)


def _again(path: Path) -> str:
    return f"remove {str(path)!r} and prepare it again"
