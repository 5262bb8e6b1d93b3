"""DatasetsSource: Parquet files with images or their paths, and folders that Hugging Face's ``datasets`` has saved.

The library (``pip install 'headwise[datasets]'``) reads what lies on this disk, and only that: no address, no script
and no pickle is ever followed, and no path leaves the root. No torch.

Legend: N images, S the side of the square that the network sees.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.data import own
from headwise.data.bulk import MEMORY, check_memory
from headwise.data.decode import SHAPES, check_shape, decode_all
from headwise.data.pixels import FINAL_SPLITS, Pixels, chunked
from headwise.data.splits import subset
from headwise.data.stored import Facts, Reading, facts
from headwise.data.stores.classfolders import OWN_SPLIT, TEST, TRAIN, VAL, divided
from headwise.data.stores.folder import as_pixels
from headwise.data.stores.gathered import gathered
from headwise.data.stores.labelsets import LABELS, check_columns, class_columns, named, names_or_count, numbered
from headwise.data.stores.listfiles import COLUMNS, JPEG_MAGIC, MOST_DIGITS, NUMBER, Digest, ListedImage, locate
from headwise.data.stores.shards import Shard, class_names, shards_in
from headwise.data.tasks import VTABTask, check_split
from headwise.errors import ConfigError, DataError, suggest
from headwise.storage.atomic import at_home
from headwise.storage.hashes import Remembered, stamp_of

IMAGES = ("image", "img", "images", "jpg", "png", *COLUMNS[0])
"""What the column of the image may be called where its type does not tell it."""


@dataclass(frozen=True)
class Row:
    """One image: where it stands, its classes by name or number, and what its content is."""

    entry: ListedImage
    digest: Digest
    facts: Facts


class DatasetsSource:
    """Images with labels from Parquet files or folders of ``datasets`` on this disk, for tasks of a user's own.

    Args:
        root: folder of ``*.parquet`` files (``train-*.parquet``, ``test/0.parquet``), or what ``save_to_disk`` wrote.
        image, label: names of the columns; None: found by their type, then by their name.
        memory, resize: as for `headwise.data.stores.folder.FolderSource`.

    Raises:
        DataError: if ``root`` is no folder. ConfigError: where ``datasets`` is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        image: str | None = None,
        label: str | None = None,
        memory: float = MEMORY,
        resize: str = SHAPES[0],
    ) -> None:
        self.root, self.image, self.label = at_home(root), image, label
        self.memory, self.shape = check_memory(memory), check_shape(resize)
        if not str(root).strip() or not os.path.isdir(self.root):  # noqa: PTH112 - no path makes it raise
            raise DataError(
                f"data.root={str(root)[:300]!r} is not a folder; give one of Parquet files or a saved dataset"
            )
        if importlib.util.find_spec("datasets") is None:
            raise ConfigError("data=hf needs the package datasets: pip install 'headwise[datasets]'")
        self._real = Path(os.path.realpath(self.root))
        self._shards: dict[str, list[Shard]] | None = None
        self._rows: dict[tuple[Any, ...], dict[str, list[Row]]] = {}

    @property
    def shards(self) -> dict[str, list[Shard]]:
        """By part, ``train``, ``val`` and ``test``, what it consists of; under an empty name where it has no part."""
        if self._shards is None:
            self._shards = shards_in(self._real)
        return self._shards

    def classes(self, multi_label: bool) -> tuple[list[str], int]:
        """Names of the classes in the order of their labels, or none and how many numbers there are.

        Raises:
            DataError: if there is no column for them, or some are numbers and others names.
        """
        shards = [shard for part in (TRAIN, "", VAL, TEST) for shard in self.shards.get(part, ())]
        stated = self._stated(shards[0], multi_label)
        if stated:
            return stated, 0
        names: set[str] = set()
        for shard in shards:
            columns = self._label_columns(shard, multi_label)
            for number, values in enumerate(shard.rows(columns), start=1):
                names.update(self._names(shard, values, multi_label, number))
        return names_or_count(names, self.root)

    def _stated(self, shard: Shard, multi_label: bool) -> list[str]:
        """Classes that the file itself names: of a ClassLabel, or of columns of 0 and 1."""
        columns = self._label_columns(shard, multi_label)
        known = class_names(shard.features[columns[0]])
        if known is not None:
            return list(known)
        several = multi_label and class_columns(columns if self.label is None else ["label"])
        return list(columns) if several else []

    def _image_column(self, shard: Shard) -> str:
        if self.image is not None:
            return _present(shard, self.image, "image")
        typed = [name for name, kind in shard.features.items() if type(kind).__name__ == "Image"]
        called = [name for name in shard.features if name.lower() in IMAGES]
        return _only(shard, typed or called[:1], "image", IMAGES)

    def _label_columns(self, shard: Shard, multi_label: bool) -> list[str]:
        if self.label is not None:
            return [_present(shard, self.label, "label")]
        rest = [name for name in shard.features if name != self._image_column(shard)]
        typed = [name for name in rest if class_names(shard.features[name]) is not None]
        called = [name for name in rest if name.lower() in LABELS]
        if multi_label and not typed and not called:
            columns = [name for name in rest if name.lower() not in IMAGES]
            if columns:
                return columns
        return [_only(shard, typed or called[:1], "label", LABELS)]

    def _names(self, shard: Shard, values: Mapping[str, Any], multi_label: bool, number: int) -> tuple[str, ...]:
        """Classes of a row, by name where the file has names for its numbers."""
        where = f"{shard.file}, line {number}"
        column, value = next(iter(values.items()))
        known = class_names(shard.features[column])
        if multi_label and known is None and self.label is None and class_columns(list(values)):
            return named(values, where)
        if not multi_label and (value is None or isinstance(value, list | float | dict)):
            raise DataError(f"{where}: column {column!r} holds {str(value)[:80]}, which is no label of an image")
        items = named({"label": value}, where) if multi_label else (str(value),)
        if known is None:
            return items
        first = value[0] if isinstance(value, list) and value else value
        # a number stands for its place, also where the names are numbers
        is_name = isinstance(first, str)
        if not all(item in known if is_name else _is_place(item, known) for item in items):
            raise DataError(f"{where}: column {column!r} holds {str(value)[:80]}, which is no class of it")
        return items if is_name else tuple(known[int(item)] for item in items)

    def _all(self, task: VTABTask) -> dict[str, list[Row]]:
        """The rows of each part, each image looked at once.

        Raises:
            DataError: for a label or an image that is none.
        """
        key = (task.num_classes, task.class_names, task.multi_label)
        if key not in self._rows:
            looked_at = own.LookedAt(self._real)
            self._rows[key] = {
                part: [row for shard in shards for row in self._of(shard, task, looked_at)]
                for part, shards in self.shards.items()
            }
            looked_at.save()
        return self._rows[key]

    def _of(self, shard: Shard, task: VTABTask, looked_at: own.LookedAt) -> Iterator[Row]:
        indices = {name: index for index, name in enumerate(task.class_names)}
        columns, image = self._label_columns(shard, task.multi_label), self._image_column(shard)
        if len(columns) > 1:
            check_columns(columns, task.class_names, str(shard.file))
        name = shard.file.relative_to(self._real).as_posix()
        images = self._images(shard, image, looked_at)
        for number, values in enumerate(shard.rows(columns), start=1):
            names = self._names(shard, values, task.multi_label, number)
            labels = numbered(names, task.num_classes, indices, f"{shard.file}, line {number}")
            entry = ListedImage(f"{name}/{number}", labels if task.multi_label else labels[0], shard.file, number)
            yield Row(entry, *images[number - 1])

    def _images(self, shard: Shard, column: str, looked_at: own.LookedAt) -> list[tuple[Digest, Facts]]:
        """What the image of each row is; read again only where its file has changed since it was looked at."""
        remembered, stamp = Remembered("rows", f"{shard.file}\0{column}"), shard.stamp
        kept = [remembered.get(str(number), stamp) for number in range(1, shard.count + 1)]
        known = [Digest(*row) for row in kept if row is not None and row[0] in looked_at.facts]
        if len(known) == shard.count:
            return [(digest, looked_at.facts[digest.sha256]) for digest in known]
        found = []
        for number, values in enumerate(shard.rows([column]), start=1):
            held = self._held(shard, values[column], number)
            # an image beside the shard changes without it
            name, its = (str(number), stamp) if isinstance(held, bytes) else (str(held[0]), stamp_of(held[1]))
            row = remembered.get(name, its)
            if row is None or row[0] not in looked_at.facts:
                content = held if isinstance(held, bytes) else _read(held[0])
                row = hashlib.sha256(content).hexdigest(), content.startswith(JPEG_MAGIC)
                looked_at.facts[row[0]] = facts(content)
                remembered.keep(name, its, *row)
            found.append((Digest(*row), looked_at.facts[row[0]]))
        remembered.save()
        return found

    def _content(self, shard: Shard, cell: Any, number: int) -> bytes:
        """The encoded image of a cell."""
        held = self._held(shard, cell, number)
        return held if isinstance(held, bytes) else _read(held[0])

    def _held(self, shard: Shard, cell: Any, number: int) -> bytes | tuple[Path, os.stat_result]:
        """What a cell holds, bytes, ``{bytes, path}``, or a path below the root: the image, or its file and state."""
        where = ListedImage("", 0, shard.file, number)
        held, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
        if isinstance(held, bytes):
            return held
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise DataError(f"{where.where}: holds no image, neither bytes nor a path: {str(cell)[:80]}")
        beside = os.path.exists(shard.file.parent / path)  # noqa: PTH110 - a path may be too long for pathlib
        folder = shard.file.parent if beside else self.root
        (found,) = locate([ListedImage(path, 0, shard.file, number)], folder, self._real)
        return found

    def _splits(self, task: VTABTask) -> dict[str, list[Row]]:
        if not task.is_own:
            raise ConfigError(
                f"data=hf has a user's own images, and task {task.name!r} is none; use dataset=own/folder"
            )
        parts = self._all(task)
        if self._is_divided_here:
            (whole,) = parts.values()
            train, test = _held_out(whole, task)
        elif TRAIN in parts:
            train, test = parts[TRAIN], parts[TEST if TEST in parts else VAL]
        else:
            raise DataError(f"{self.root}: there is no training part; found {', '.join(parts)}")
        rest, val = (train, parts[VAL]) if VAL in parts and TEST in parts else _held_out(train, task)
        return {"train800val200": train, "train800": rest, "val200": val, "test": test}

    @property
    def _is_divided_here(self) -> bool:
        """Whether nothing but the rows themselves can say which are for testing."""
        return set(self.shards) in ({""}, {TRAIN})

    def _contents(self, task: VTABTask) -> dict[str, list[tuple[ListedImage, Digest]]]:
        return {split: [(row.entry, row.digest) for row in rows] for split, rows in self._splits(task).items() if rows}

    def _facts(self, task: VTABTask) -> dict[str, Facts]:
        return {row.digest.sha256: row.facts for rows in self._all(task).values() for row in rows}

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the labels and contents of the images in their order, and of how they are read.

        Raises:
            DataError: if an image is missing or has two labels.
        """
        own.check(self._contents(task), task)
        sha, depth, rows = hashlib.sha256(b"datasets/1\n"), self.depth(task), self._splits(task)
        if self.shape != SHAPES[0]:
            sha.update(f"resize {self.shape}\n".encode())
        for split in splits:
            sha.update(f"{split}\n".encode())
            for row in rows[split]:
                mark = own.reading_mark(row.facts, depth)
                sha.update(f"{row.entry.label} {row.digest.sha256}{mark}\n".encode())
        return sha.hexdigest()

    def depth(self, task: VTABTask) -> int | None:
        """As `headwise.data.stores.folder.FolderSource.depth`."""
        return own.depth_of(task, self._facts(task))

    def labels(self, task: VTABTask) -> list[str]:
        """``own data``, what is odd about it, and ``own split`` where the test images were chosen here."""
        several = [own.SEVERAL] if task.multi_label else []
        divided_here = [OWN_SPLIT] if self._is_divided_here else []
        return ["own data", *own.labels(self._contents(task)), *several, *divided_here]

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of a split."""
        check_split(split)
        return len(self._splits(task)[split])

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Decode the images of a split, in the order of their rows."""
        check_split(split)
        rows = self._splits(task)[split]
        chosen = [rows[i] for i in subset(len(rows), limit)]
        own.announce(self._contents(task), task, self.depth(task), self._facts(task))
        how = size, resize
        return gathered(self, task, split, how, len(chosen), lambda: self._chunks(task, chosen, *how), f"{limit}")

    def _chunks(self, task: VTABTask, rows: Sequence[Row], size: int, resize: str) -> Iterator[Pixels]:
        """The images of rows, file by file in the order of the rows."""
        reading = Reading(self.depth(task))
        for found in chunked(self._wanted(rows)):
            yield self._decoded(task, found, size, resize, reading)

    def _wanted(self, rows: Sequence[Row]) -> Iterator[tuple[bytes, Row]]:
        shards = {shard.file: shard for some in self.shards.values() for shard in some}
        by_file: dict[Path, list[Row]] = {}
        for row in rows:
            by_file.setdefault(row.entry.file, []).append(row)
        for file, some in by_file.items():
            wanted = {row.entry.line: row for row in some}
            column = self._image_column(shards[file])
            # rows of a file stand in its order, and files one after the other
            for number, values in enumerate(shards[file].rows([column]), start=1):
                if number in wanted:
                    yield self._content(shards[file], values[column], number), wanted[number]

    def _decoded(
        self, task: VTABTask, found: Sequence[tuple[bytes, Row]], size: int, resize: str, reading: Reading
    ) -> Pixels:
        files = [(content, row.entry.where) for content, row in found]
        images, native = decode_all(files, task.channels, size, resize, reading=reading, shape=self.shape)
        entries = [row.entry for _, row in found]
        return as_pixels(images, entries, task, "datasets", "native" if native else resize)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _held_out(rows: Sequence[Row], task: VTABTask) -> tuple[list[Row], list[Row]]:
    """Most rows, and one of five, of each class; of several labels one of five of all. In the order of the rows."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault("" if task.multi_label else str(row.entry.label), []).append(row.entry.path)
    _, held = divided(groups)
    out = {path for paths in held.values() for path in paths}
    return [r for r in rows if r.entry.path not in out], [r for r in rows if r.entry.path in out]


def _is_place(item: str, known: Sequence[str]) -> bool:
    """Whether an item is a number of a class; -1, for none, is not."""
    return NUMBER.fullmatch(item) is not None and 0 <= int(item[:MOST_DIGITS]) < len(known)


def _present(shard: Shard, name: str, what: str) -> str:
    if name not in shard.features:
        raise DataError(f"{shard.file}: there is no column data.{what}={name!r}{suggest(name, shard.features)}")
    return name


def _only(shard: Shard, found: Sequence[str], what: str, called: Sequence[str]) -> str:
    if len(found) != 1:
        columns = ", ".join(shard.features)
        raise DataError(
            f"{shard.file}: {len(found) or 'no'} columns may be the {what} (looked for {', '.join(called)}); give "
            f"data.{what}=NAME, one of {columns}"
        )
    return found[0]
