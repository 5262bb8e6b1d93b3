"""A user's own images, looked at before they are used: what a number made with them must say, or may not be made with.

Standard library and PIL. Official sets are never looked at: they are what they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from headwise.data.decode import num_threads
from headwise.data.notices import say_once
from headwise.data.stored import Facts, facts
from headwise.data.stores.listfiles import Contents, Digest, ListedImage
from headwise.data.tasks import VTABTask
from headwise.errors import DataError
from headwise.storage import atomic
from headwise.storage.hashes import cache_folder
from headwise.storage.plain import STORES, read_json

LEAK = "test images in train"
SEVERAL = "multi-label (mAP)"
FEW = 50
"""Test images below which a warning says how little they tell."""


def check(lists: Contents, task: VTABTask) -> None:
    """Refuse lists that contradict themselves.

    Raises:
        DataError: if an image has two labels, be it under two names; if there are two classes and every image has both:
            ``0, 1`` may mean them, or 0 and 1 for each class.
    """
    labels: dict[str, dict[int | tuple[int, ...], ListedImage]] = defaultdict(dict)
    for rows in lists.values():
        for entry, digest in rows:
            labels[digest.sha256].setdefault(entry.label, entry)
    twice = [list(by_label.values()) for by_label in labels.values() if len(by_label) > 1]
    if twice:
        pairs = "; ".join(
            f"{one.path!r} is {one.label} ({one.place}) and "
            f"{'' if one.path == two.path else f'as {two.path!r} '}{two.label} ({two.place})"
            for one, two, *_ in twice[:2]
        )
        what = "sets of labels" if task.multi_label else "labels"
        raise DataError(
            f"task {task.name!r}: {_count(len(twice), 'image')} with two {what} (same bytes): {pairs}; "
            f"give each image one {'set' if task.multi_label else 'label'}"
        )
    entries = [entry for rows in lists.values() for entry, _ in rows]
    if task.multi_label and task.num_classes == 2 and entries and all(entry.label == (0, 1) for entry in entries):
        raise DataError(
            f"task {task.name!r}: every image has both classes ({entries[0].where}); where 0 and 1 are meant for each "
            "class, give a column for each class, or the names of an image's classes"
        )


def labels(lists: Contents) -> list[str]:
    """What a result must say: how many lines of the test list name an image that is in the training list."""
    leaked = _shared(lists, "test", "train800val200")
    return [f"{LEAK}: {len(leaked)}"] if leaked else []


def findings(lists: Contents, task: VTABTask) -> list[str]:
    """What a user should know of the lists, a line each: how many, and two examples."""
    lines = []
    for split, other in (("test", "train800val200"), ("test", "val200"), ("val200", "train800")):
        if shared := _shared(lists, split, other):
            one, two = (lists[name][0][0].file.name for name in (split, other))
            lines.append(f"{_count(len(shared), 'image')} of {one} also in {two} (same bytes): {_examples(shared)}")
    files: dict[str, Sequence[tuple[ListedImage, Digest]]] = {}
    for rows in lists.values():
        files.setdefault(rows[0][0].file.name, rows)  # a derived train800 is a part of its file
    for name, rows in files.items():
        if again := _repeated(rows):
            lines.append(
                f"{_count(len(again), 'image')} listed more than once in {name} (same bytes): {_examples(again)}"
            )
    for split, name in (("train800val200", "training"), ("test", "test")):
        present = {label for entry, _ in lists.get(split, ()) for label in entry.classes}
        missing = [label for label in range(task.num_classes) if label not in present]
        if missing and split in lists:
            named = [f"{label} ({task.class_names[label]})" if task.class_names else str(label) for label in missing]
            lines.append(f"{len(missing)} of {task.num_classes} classes without {name} images: {_two(named)}")
    return lines


def few(lists: Contents) -> list[str]:
    """How far off a number on few test images may be, a line; none where there are `FEW` or more."""
    count = len(lists.get("test", ()))
    if not 0 < count < FEW:
        return []
    if any(isinstance(entry.label, tuple) for entry, _ in lists["test"]):
        return [f"only {_count(count, 'test image')}: a mean average precision of so few says little"]
    # of a share p the standard error is sqrt(p (1 - p) / n), largest at one half
    error = 50 / math.sqrt(count)
    return [f"only {_count(count, 'test image')}: an accuracy has a standard error of up to {error:.1f} points"]


def announce(lists: Contents, task: VTABTask, depth: int | None, read: Mapping[str, Facts]) -> None:
    """Say once what was found in the lists, and how the images are read where that is not as they are stored."""
    for line in [*few(lists), *findings(lists, task)]:
        say_once(f"task {task.name!r}: {line}")
    entries = {digest.sha256: entry for rows in lists.values() for entry, digest in rows}
    tilted = [entry for sha, entry in entries.items() if read[sha].orientation != 1]
    deep = [entry for sha, entry in entries.items() if read[sha].depth]
    moving = [entry for sha, entry in entries.items() if read[sha].has_more]
    if moving:
        several = f"{_count(len(moving), 'file')} of several pictures, the first is taken"
        say_once(f"task {task.name!r}: {several}: {_examples(moving)}")
    if tilted:
        say_once(f"task {task.name!r}: {_count(len(tilted), 'image')} turned upright by EXIF: {_examples(tilted)}")
    if deep:
        how = "as dataset.depth says" if task.depth else "found from the largest value; dataset.depth=N states another"
        say_once(
            f"task {task.name!r}: {_count(len(deep), 'image')} of more than 8 bits a value, read as {depth} bits "
            f"({how}): {_examples(deep)}"
        )


def notes(item: Facts, depth: int | None) -> list[str]:
    """What to say of one image of whoever uses a network, whose pixels are not taken as they are stored."""
    lines = ["images are turned upright by their EXIF orientation"] if item.orientation != 1 else []
    if item.has_more:
        lines.append("of files with several pictures the first is taken")
    if item.depth:
        how = f"read as {depth} bits, as the run did" if depth else "scaled to 8 by what each needs"
        lines.append(f"images of more than 8 bits a value are {how}")
    return lines


def depth_of(task: VTABTask, read: Mapping[str, Facts]) -> int | None:
    """Bits that a value of the deep images of a task has; None if it has no such image."""
    deepest = max((item.depth for item in read.values()), default=0)
    return (task.depth or deepest) if deepest else None


def reading_mark(item: Facts, depth: int | None) -> str:
    """What a fingerprint says of an image whose pixels are not what its bytes say without EXIF and 16 bits."""
    way = f" orientation {item.orientation}" if item.orientation != 1 else ""
    return f"{way} depth {depth}" if item.depth else way


def look(lists: Contents, files: Mapping[str, Path], folder: Path) -> dict[str, Facts]:
    """What every image says of itself, by the hash of its content; remembered, so each is opened once.

    `files` says where the image of a hash lies; the task's `folder` names the note in ``$HEADWISE_CACHE``.
    """
    looked_at = LookedAt(folder)
    wanted = dict.fromkeys(digest.sha256 for rows in lists.values() for _, digest in rows)
    fresh = [sha for sha in wanted if sha not in looked_at.facts]
    with ThreadPoolExecutor(num_threads()) as pool:
        looked_at.facts |= zip(fresh, pool.map(facts, (files[sha] for sha in fresh)), strict=True)
    looked_at.save()
    return {sha: looked_at.facts[sha] for sha in wanted}


class LookedAt:
    """What images of a folder say of themselves, by the hash of their content, remembered in ``$HEADWISE_CACHE``.

    A note that cannot be read counts as none, and one that cannot be written costs time, not the run.

    Attributes:
        facts: of all that were looked at; what is added is kept by `save`.
    """

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]
        self._note = cache_folder() / "facts" / f"{name}.json"
        self.facts = _remembered(self._note)
        self._known = len(self.facts)

    def save(self) -> None:
        """Write what is new."""
        if len(self.facts) > self._known:
            with suppress(OSError):
                plain = {sha: [item.orientation, item.depth, item.has_more] for sha, item in self.facts.items()}
                atomic.write_text(self._note, json.dumps(plain, separators=(",", ":")))


def _remembered(note: Path) -> dict[str, Facts]:
    try:
        plain = read_json(note, STORES)
    except (OSError, ValueError):
        return {}
    items = plain.items() if isinstance(plain, dict) else ()
    return {
        # by type, since isinstance takes true for a whole number
        sha: Facts(*item)
        for sha, item in items
        if isinstance(item, list) and [type(x) for x in item] == [int, int, bool]
    }


def _shared(lists: Contents, split: str, other: str) -> list[ListedImage]:
    """Lines of a split whose image is in another one as well."""
    there = {digest.sha256 for _, digest in lists.get(other, ())}
    return [entry for entry, digest in lists.get(split, ()) if digest.sha256 in there]


def _repeated(rows: Sequence[tuple[ListedImage, Digest]]) -> list[ListedImage]:
    """Lines whose image stands further up in the same list."""
    seen: set[str] = set()
    again = []
    for entry, digest in rows:
        if digest.sha256 in seen:
            again.append(entry)
        seen.add(digest.sha256)
    return again


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _examples(entries: Iterable[ListedImage]) -> str:
    return _two([repr(entry.path) for entry in entries])


def _two(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
