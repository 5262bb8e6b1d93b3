"""TFDSSource: prepared upstream directories, read without TensorFlow and decoded by PIL.

The data library is imported when the first record is read, not before. Images are never decoded by it: it keeps the
fourth channel of an RGBA image and the indices of a palette.

Legend: N images, S the side of the square that the network sees.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.bulk import MEMORY, check_memory
from headwise.data.decode import decode_all
from headwise.data.labels import label_of
from headwise.data.pixels import FINAL_SPLITS, Pixels, chunked, decoder
from headwise.data.splits import Indices, parse_slice, split_ranges, subset
from headwise.data.stores.fewshot import UNOFFICIAL, drawing_few_shots
from headwise.data.stores.gathered import gathered
from headwise.data.stores.listfiles import JPEG_MAGIC
from headwise.data.stores.membership import Membership, key_of, wrong_sizes
from headwise.data.stores.prepared import FEATURES, PreparedSet, check_features, find, tfrecords, versions_present
from headwise.data.tasks import VTABTask
from headwise.errors import DataError
from headwise.storage.atomic import at_home
from headwise.storage.hashes import Remembered

BATCH = 64
"""Records that are asked for at a time."""


@dataclass(frozen=True)
class Record:
    """One example: the encoded image, its class, its key (None if not stored), and where it lies, for errors."""

    image: bytes
    label: int
    key: str | None
    where: str


@drawing_few_shots("fingerprint", "labels", "count", "load")
class TFDSSource:
    """Prepared directories ``<root>/<builder>[/<config>]/<version>`` in array_record or tfrecord files.

    Args:
        root: folder that holds the builders' folders.
        official: whether other counts than the official ones are an error; False labels them ``unofficial split``.
            Directories that a generator wrote say so themselves and are labelled ``synthetic``.
        memory: as for FolderSource.
    Raises:
        DataError: if ``root`` is no folder.
    """

    def __init__(self, root: str | Path, official: bool = True, memory: float = MEMORY) -> None:
        self.root, self.official, self.memory = at_home(root), official, check_memory(memory)
        if not str(root).strip() or not os.path.isdir(self.root):  # noqa: PTH112 - no path makes it raise
            raise DataError(f"data.root={str(root)[:300]!r} is not a folder; give the one that holds the prepared sets")
        self._prepared: dict[str, PreparedSet] = {}

    def has(self, task: VTABTask) -> bool:
        """Whether the task's builder is prepared here, in whatever version."""
        return task.builder is not None and bool(versions_present(self.root, task.builder, task.config))

    def prepared(self, task: VTABTask) -> PreparedSet:
        """The directory that is read; DataError for none, or a damaged one, or of other versions or counts."""
        if task.name not in self._prepared:
            if task.builder is None:
                raise DataError(f"task {task.name!r} has no upstream set; use data=folder data.root=PATH")
            prepared = find(self.root, task.builder, task.config, task.versions, task.name)
            wrong = self._wrong_sizes(task, prepared)
            if wrong and self.official and prepared.synthetic is None:
                raise DataError(
                    f"{prepared.path}: is not the official set: {'; '.join(wrong)}; prepare it again, or use "
                    "data=tfds data.official=false, which labels results 'unofficial split'"
                )
            self._prepared[task.name] = prepared
        return self._prepared[task.name]

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of every class and every encoded image; the same for both kinds of record files."""
        sha = hashlib.sha256(b"tfds/1\n")
        for split in splits:
            sha.update(f"{split} {' '.join(self._scan(task, part)[0] for part in _parts(split))}\n".encode())
        return sha.hexdigest()

    def labels(self, task: VTABTask) -> list[str]:
        """``synthetic``, ``unofficial split``, ``lossy``, ``own draw``, as far as they apply."""
        is_lossy = any(self._scan(task, part)[1] for part in ("train800", "val200", "test"))
        return [*self.slice_labels(task), *(["lossy"] if is_lossy else [])]

    def slice_labels(self, task: VTABTask) -> list[str]:
        """Those that need no image."""
        prepared = self.prepared(task)
        return ["synthetic"] if prepared.synthetic else [UNOFFICIAL] if self._wrong_sizes(task, prepared) else []

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of the split, from the builder's own counts."""
        return sum(last - first for _, first, last in self._runs(task, split))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Read and decode a split, in the order of its records."""
        positions = subset(self.count(task, split), limit)
        how, rule = (size, resize), f"{task.pixel_scale} {limit}"
        chunks = functools.partial(self.chunks, task, split, *how, positions)
        return gathered(self, task, split, how, len(positions), chunks, rule)

    def chunks(
        self, task: VTABTask, split: str, size: int, resize: str, positions: Indices | None = None
    ) -> Iterator[Pixels]:
        """The images of a split in its order, or those at ascending positions of it, some hundred at a time."""
        for batch in chunked(self.records(task, split, positions)):
            yield self._decode(task, batch, size, resize)

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        return np.array([record.label for record in self.records(task, split)], dtype=np.int64)

    def origin(self, task: VTABTask) -> dict[str, str]:
        """Plain facts that a cache records."""
        prepared = self.prepared(task)
        name = prepared.builder if task.config is None else f"{prepared.builder}.{task.config}"
        kind = "tfds" if prepared.synthetic is None else "synthetic"
        return {"kind": kind, "name": name, "version": prepared.version, "format": prepared.format}

    def records(self, task: VTABTask, split: str, positions: Indices | None = None) -> Iterator[Record]:
        """The records of a split, or those at ascending positions of it, checked to be the ones that belong there.

        Raises:
            DataError: for a damaged file, a record that does not belong there, or a class that is out of range.
        """
        prepared, start = self.prepared(task), 0
        is_official = prepared.synthetic is None and not self._wrong_sizes(task, prepared)
        for part, (name, first, last) in zip(_parts(split), self._runs(task, split), strict=True):
            chosen = np.arange(first, last)
            if positions is not None:
                chosen = positions[(positions >= start) & (positions < start + last - first)] - start + first
            start += last - first
            where = str(prepared.path)
            check = Membership(prepared.builder, name, part, first, prepared.sizes[name], is_official, where)
            for position, example in _examples(prepared, name, chosen):
                place = f"{where}, record {position} of {name!r}"
                try:
                    label = label_of(example, task.label_key, task.label_rule)
                    image = bytes(example[task.image_key])
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{place}: {type(error).__name__}: {error}") from error
                if not 0 <= label < task.num_classes:
                    raise DataError(f"{place}: label {label} is outside of 0..{task.num_classes - 1}")
                key = key_of(prepared.builder, example, task.class_names)
                check.see(position, example, key)
                yield Record(image, label, key, place)

    def _decode(self, task: VTABTask, records: Sequence[Record], size: int, resize: str) -> Pixels:
        prepared = self.prepared(task)
        files = [(record.image, record.where) for record in records]
        images, native = decode_all(files, task.channels, size, resize, task.pixel_scale)
        keys = tuple(record.key or f"{record.where.rpartition('record ')[2]}" for record in records)
        source = "tfds" if prepared.synthetic is None else f"synthetic:{prepared.synthetic}"
        facts = {"source": source, "decoder": decoder(), "resize": "native" if native else resize}
        facts |= {"builder": f"{prepared.builder}:{prepared.version}", "format": prepared.format}
        return Pixels(images, np.array([record.label for record in records], dtype=np.int64), keys, facts)

    def _runs(self, task: VTABTask, split: str) -> list[tuple[str, int, int]]:
        prepared = self.prepared(task)
        return split_ranges(task, split, prepared.sizes, clip=bool(self._wrong_sizes(task, prepared)))

    def _wrong_sizes(self, task: VTABTask, prepared: PreparedSet) -> list[str]:
        slices = [part.strip() for text in task.splits.values() for part in text.split("+")]
        used = list(dict.fromkeys(parse_slice(text, prepared.sizes)[0] for text in slices))
        return wrong_sizes(prepared.builder, prepared.sizes, used)

    def _scan(self, task: VTABTask, part: str) -> tuple[str, bool]:
        """Hash of one of train800, val200 and test, and whether it is lossy; remembered until a file changes."""
        prepared = self.prepared(task)
        rules = [task.splits, task.image_key, task.label_key, task.label_rule, task.num_classes, task.encoding]
        # all that decides which records are hashed, and with which classes: another definition has a note of its own
        owner = json.dumps([str(prepared.path.resolve()), [*rules, part, self._runs(task, part)]])
        remembered, stamp = Remembered("tfds", owner), prepared.stamp()
        if kept := remembered.get(part, stamp):
            return kept
        sha, lossy = hashlib.sha256(), False
        for record in self.records(task, part):
            sha.update(f"{record.label} {hashlib.sha256(record.image).hexdigest()}\n".encode())
            lossy = lossy or (task.encoding == "lossless" and record.image.startswith(JPEG_MAGIC))
        remembered.keep(part, stamp, sha.hexdigest(), lossy)
        remembered.save()
        return sha.hexdigest(), lossy


def _parts(split: str) -> tuple[str, ...]:
    return ("train800", "val200") if split == "train800val200" else (split,)


def _examples(prepared: PreparedSet, name: str, positions: Indices) -> Iterator[tuple[int, dict[str, Any]]]:
    """Deserialised examples at ascending positions of an upstream split; images stay encoded."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.WARNING)  # it tells of every directory it opens
    try:
        check_features(prepared.path / FEATURES)
        builder = tfds.builder_from_directory(prepared.path)
        features = builder.info.features
        skip = {key: tfds.decode.SkipDecoding() for key, f in features.items() if isinstance(f, tfds.features.Image)}
        if prepared.format == "tfrecord":
            for position, record in tfrecords(prepared.shards[name], positions.tolist()):
                yield position, features.deserialize_example_np(record, decoders=skip)
            return
        source = builder.as_data_source(name, decoders=skip)
        for start in range(0, len(positions), BATCH):
            batch = positions[start : start + BATCH].tolist()
            yield from zip(batch, source.__getitems__(batch), strict=True)
    except DataError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"{prepared.path}: split {name!r} cannot be read ({type(error).__name__}: {reason})") from error
