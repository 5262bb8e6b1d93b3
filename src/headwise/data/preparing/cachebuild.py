"""Write a cache: decoded images of a source in the layout of `headwise.data.stores.cache`, whole or not at all.

It is written beside its place under a claim and renamed when everything in it is hashed and on disk. No torch.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.bulk import MARGIN, MixedError, Stream
from headwise.data.bulk import write_array as _save
from headwise.data.decode import check_resize
from headwise.data.pixels import Cacheable
from headwise.data.stores.cache import META, PARTS, SCHEMA, Cache, label_file, pixels_name, rules
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from headwise.storage import atomic
from headwise.storage.claims import Claim, describe

PAIRS = [(train, final) for train in ("train800", "train800val200") for final in ("val200", "test")]
"""Pairs of splits that a run may use, and whose fingerprint a cache therefore keeps."""

Say = Callable[[str], None]


def build(
    source: Cacheable,
    tasks: Sequence[VTABTask],
    size: int,
    resize: str,
    root: Path,
    say: Say = lambda line: None,
    wait: bool = True,
) -> Path:
    """Write the cache of a set in the folder of all caches, unless it is there; returns its folder.

    All tasks on the set share its images; those that are not small enough to stay native are brought to `size`. Without
    `wait` another process that is building the same cache is a BusyError. ConfigError if the tasks do not share their
    images; DataError if the source is damaged or the disk is full. What was there before is untouched.
    """
    check_resize(resize)
    if (
        len({(t.builder, t.config, tuple(t.splits.items()), t.channels, t.image_key, t.pixel_scale) for t in tasks})
        != 1
    ):
        raise ConfigError(f"tasks {', '.join(t.name for t in tasks)} do not share their images; cache them one by one")
    origin = source.origin(tasks[0])
    if origin["kind"] == "folder" and len(tasks) != 1:
        raise ConfigError("tasks of a list-file tree have images of their own; cache them one by one")
    version = f"@{origin['version']}" if "version" in origin else ""
    base = f"{origin['name']}{version}-{origin['kind']}"
    with Claim(
        root / ".claims" / base,
        wait=wait,
        on_wait=lambda holder: say(f"{base}: {describe(holder)} is building it; waiting"),
    ):
        # asked under the claim: another process may have built it while this one waited
        for pixels in ("native", pixels_name(size, resize)):
            if (there := _usable(root / f"{base}-{pixels}", tasks, source, say)) is not None:
                return there
        for leftover in root.glob(f".building-{base}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = root / f".building-{base}-{uuid.uuid4().hex[:8]}"
        try:
            return _build(source, tasks, size, resize, folder, base, origin, say)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"the disk of {str(root)!r} is full; free some space and start again") from error
            raise DataError(f"{error.filename or root}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _usable(path: Path, tasks: Sequence[VTABTask], source: Cacheable, say: Say) -> Path | None:
    """The folder if it is a complete cache of these tasks and of the source's present content."""
    if not path.is_dir():
        return None
    try:
        cache = Cache.open(path)
        if not all(cache.holds(task) for task in tasks):
            raise DataError("it lacks a task")
        cache.check()
    except DataError as error:
        say(f"{path.name}: built again ({error})")
        return None
    same = all(cache.meta["tasks"][t.name]["fingerprints"] == _fingerprints(source, t) for t in tasks)
    if not same:
        say(f"{path.name}: built again, because its source has changed")
    return path if same else None


def _fingerprints(source: Cacheable, task: VTABTask) -> dict[str, str]:
    return {" ".join(pair): source.fingerprint(task, pair) for pair in PAIRS}


def _build(
    source: Cacheable,
    tasks: Sequence[VTABTask],
    size: int,
    resize: str,
    folder: Path,
    base: str,
    origin: dict[str, str],
    say: Say,
) -> Path:
    first = tasks[0]
    fingerprints = {task.name: _fingerprints(source, task) for task in tasks}
    try:
        written = _write(source, first, size, resize, folder, say, False)
    # a part has images of another size than those before it: once more, with all of them resized
    except MixedError:
        shutil.rmtree(folder)
        written = _write(source, first, size, resize, folder, say, True)
    splits, classes, facts, keys = written
    described = {}
    for task in tasks:
        labels = {part: classes[part] if task is first else source.all_labels(task, part) for part in splits}
        described[task.name] = {
            "rules": rules(task),
            "num_classes": task.num_classes,
            "labels": source.labels(task),
            "fingerprints": fingerprints[task.name],
            "splits": _write_labels(folder, task, labels, splits),
        }
    (folder / "keys.txt").write_bytes(keys)
    pixels = "native" if facts["resize"] == "native" else pixels_name(size, resize)
    meta = {
        "schema": SCHEMA,
        "kind": origin["kind"],
        "origin": origin,
        "pixels": pixels,
        "resize": None if pixels == "native" else {"method": resize, "size": size},
        "facts": facts,
        "splits": splits,
        "tasks": described,
        "keys": hashlib.sha256(keys).hexdigest(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic.write_json(folder / META, meta)
    target = _put_in_place(folder, f"{base}-{pixels}", base)
    say(f"{target.name}: {Cache.open(target).num_bytes / 1e6:,.0f} MB")
    return target


def _write_labels(
    folder: Path, task: VTABTask, labels: Mapping[str, NDArray[np.int64]], splits: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a task's classes of every part; returns what describes them."""
    described: dict[str, Any] = {}
    for part, classes in labels.items():
        if len(classes) != (count := splits[part]["shape"][0]):
            raise DataError(f"task {task.name!r}: {part} has {len(classes)} classes for {count} images")
        described[part] = _save(folder / label_file(task.name, part), classes.shape, iter([classes]), "int64")
        described[part]["histogram"] = np.bincount(classes, minlength=task.num_classes).tolist()
    return described


def _put_in_place(folder: Path, name: str, base: str) -> Path:
    """Give a folder that is whole its name, and remove what had the name before."""
    for file in folder.iterdir():
        atomic.flush(file)
    target = folder.parent / name
    if target.exists():  # a folder cannot be renamed over another that holds files
        target.rename(folder.parent / f".building-{base}-old-{uuid.uuid4().hex[:8]}")
    folder.rename(target)
    atomic.flush(target.parent)
    for leftover in target.parent.glob(f".building-{base}-old-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def _write(
    source: Cacheable, task: VTABTask, size: int, resize: str, folder: Path, say: Say, shrink: bool
) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]], dict[str, Any], bytes]:
    """Images of all parts, classes of ``task``, the source's facts, keys; MixedError if parts do not fit together."""
    folder.mkdir(parents=True)
    splits: dict[str, Any] = {}
    classes: dict[str, NDArray[np.int64]] = {}
    facts: dict[str, Any] = {}
    keys: list[str] = []
    of_all: tuple[int, ...] | None = None

    def told(stream: Stream, part: str, count: int) -> Iterator[NDArray[np.uint8]]:
        for images in stream:
            say(f"{task.name}: {part} {len(stream.labels)} of {count}")
            yield images

    for part in PARTS[source.origin(task)["kind"]]:
        count = source.count(task, part)
        stream = Stream(source.chunks(task, part, size, resize), size, resize, shrink, of_all)
        pieces = told(stream, part, count)
        head = next(pieces, None)
        if head is None:
            raise DataError(f"task {task.name!r}: {part} has no image")
        of_all, shape = stream.shape, (count, *head.shape[1:])
        free = shutil.disk_usage(folder).free
        # refused before it is written, in the words for a disk that is full
        if free < int(np.prod(shape)) + MARGIN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        splits[part] = _save(folder / f"{part}.npy", shape, itertools.chain([head], pieces), "uint8")
        classes[part], facts = stream.classes, stream.facts
        keys += [f"{part} {key}" for key in stream.keys]
    return splits, classes, facts, "".join(f"{key}\n" for key in keys).encode()
