"""A user's images as they lie in class folders: ``train/cat/a.jpg`` with test or val beside, or ``cat/a.jpg`` alone.

What is not divided by folders is divided here, by a hash of each image's path: every fifth image of a class is for
testing, and of the others every fifth for a search. Neither the seed of a run nor the machine changes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from headwise.data import own
from headwise.data.stores.listfiles import SUFFIXES, ListedImage
from headwise.data.tasks import VTABTask
from headwise.errors import DataError, suggest

TRAIN, VAL, TEST = "train", "val", "test"
SHARE = 5
"""One image of so many is held out."""
OWN_SPLIT = "own split"


def images_below(root: Path) -> Iterator[str]:
    """Paths below a folder of what is taken for an image: not of hidden files, nor of those in hidden folders."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(place) / name).relative_to(root).as_posix()


Parts = dict[str, dict[str, list[str]]]
"""By part, ``train``, ``val`` and ``test``, and by class, sorted, the paths of its images below the part."""


def layout(folder: Path) -> Parts:
    """The class folders of each part; without parts all of them under an empty name. One walk through the folder.

    A folder of one class only is none of classes.
    """
    paths = sorted(images_below(folder))
    whole, parts = _by_folder(paths), Parts()
    for part in (TRAIN, VAL, TEST):
        # a walk does not follow links; a part may be one
        linked = sorted(images_below(folder / part)) if (folder / part).is_symlink() else ()
        below = [path.removeprefix(f"{part}/") for path in paths if path.startswith(f"{part}/")]
        if classes := _by_folder([*below, *linked]):
            parts[part] = classes
    if TRAIN in parts and len(parts) > 1:
        return parts
    return {"": whole} if len(whole) > 1 else {}


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by the first folder in them; those without one are left out."""
    classes: dict[str, list[str]] = {}
    for path in paths:
        name, slash, _ = path.partition("/")
        if slash:
            classes.setdefault(name, []).append(path)
    return classes


def names_in(parts: Parts) -> list[str]:
    """The classes that folders name, in the order of their labels; empty where there are no class folders."""
    return list(parts.get(TRAIN, parts.get("", {})))


class ClassFolders:
    """The splits of a task whose images lie in class folders, see `layout`; its `class_names`, if any, order labels."""

    def __init__(self, folder: Path, task: VTABTask, parts: Parts) -> None:
        self.folder, self.task, self.parts = folder, task, parts
        names = list(task.class_names or names_in(parts))
        if len(names) != task.num_classes:
            raise DataError(
                f"task {task.name!r}: {len(names)} class folders in {str(folder)!r} for "
                f"dataset.num_classes={task.num_classes}; leave it out to take all"
            )
        self.labels_of = {name: label for label, name in enumerate(names)}

    def file(self, split: str) -> Path | None:
        """The folder behind a split."""
        return None if split == "val200" and not self.entries(split) else self.folder

    def entries(self, split: str) -> list[ListedImage]:
        """The images of a split, class by class in the order of their paths."""
        if "" in self.parts:
            train, test = divided(self.parts[""])
        else:
            train, test = self._of(TRAIN), self._of(TEST if TEST in self.parts else VAL)
        if VAL in self.parts and TEST in self.parts:
            rest, held_out = train, self._of(VAL)
        else:
            rest, held_out = divided(train)
        splits = {"test": (TEST, test), "train800val200": (TRAIN, train), "train800": (TRAIN, rest)}
        name, chosen = splits.get(split, (VAL, held_out))
        return [
            ListedImage(path, self._label(label), self.folder / name, 0)
            for label, paths in chosen.items()
            for path in paths
        ]

    def _of(self, part: str) -> dict[str, list[str]]:
        return {name: [f"{part}/{path}" for path in paths] for name, paths in self.parts[part].items()}

    def _label(self, name: str) -> int:
        if name not in self.labels_of:
            raise DataError(f"task {self.task.name!r}: {name!r} is no class{suggest(name, self.labels_of)}")
        return self.labels_of[name]

    def labels(self, contents: own.Contents) -> list[str]:
        """``own data``, what is odd about it, and ``own split`` where the test images were chosen here."""
        return ["own data", *own.labels(contents), *([OWN_SPLIT] if "" in self.parts else [])]


def divided(classes: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Of each class most images, and one of `SHARE` (at least one, where there are two)."""
    kept: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    for name, paths in classes.items():
        drawn = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        count = max(1, len(drawn) // SHARE) if len(drawn) > 1 else 0
        held_out[name], kept[name] = sorted(drawn[:count]), sorted(drawn[count:])
    return kept, held_out
