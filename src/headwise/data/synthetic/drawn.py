"""SyntheticSource: images drawn by ``headwise.data.synthetic`` instead of read. Numpy and PIL, no torch."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data import labels as label_rules
from headwise.data import synthetic
from headwise.data.decode import fit_all
from headwise.data.pixels import CHUNK, FINAL_SPLITS, Pixels
from headwise.data.splits import Indices, numbered_order, record_order, split_ranges, subset
from headwise.data.stores.fewshot import drawing_few_shots
from headwise.data.stores.tfds import TFDSSource
from headwise.data.synthetic.records import prepared_root, through_jpeg
from headwise.data.synthetic.standin import StandIn
from headwise.data.tasks import VTABTask
from headwise.errors import DataError

FEW = 256
"""Up to so many images are drawn as they are asked for, however slowly, and kept for the next run of this process; the
same images as those of the prepared set."""
SHARED = frozenset(["rays", "records", "standin"])
"""Modules of headwise.data.synthetic that generators share."""
KEPT = 128
"""Small splits that are kept."""
_kept: dict[tuple[object, ...], Pixels] = {}


@drawing_few_shots("fingerprint", "count", "load")
class SyntheticSource:
    """Images drawn by ``headwise.data.synthetic.<builder>`` in upstream's own split, or by a stand-in.

    Sets that are slow to draw are drawn once, into ``$HEADWISE_CACHE/synthetic``, and read like any prepared set.

    Args:
        lossy: store the images as JPEG of default quality first, to measure what that costs.
        records: draw every look-alike once as prepared directories, dSprites too (737,280 images, minutes), and read
            them; the images are the same.

    Raises:
        DataError: for both.
    """

    def __init__(self, lossy: bool = False, records: bool = False) -> None:
        if lossy and records:
            raise DataError("data.lossy=true and data.records=true exclude each other: upstream's records are lossless")
        self.lossy, self.records = lossy, records

    def has(self, task: VTABTask) -> bool:
        """Whether there is a look-alike for the task; every other task with an upstream set has a stand-in."""
        return task.builder in _generators()

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of the generator's name and revision and of the rules that choose and label its images."""
        generator = self._generator(task)
        parts = [task.builder, generator.REVISION, generator.SIZES, task.splits, task.label_key, task.label_rule]
        parts += ["stand-in", task.name, task.num_classes, task.channels] if not self.has(task) else []
        parts += ["lossy"] if self.lossy else []
        return hashlib.sha256(json.dumps(["synthetic/1", *parts, list(splits)], sort_keys=True).encode()).hexdigest()

    def labels(self, task: VTABTask) -> list[str]:
        """``synthetic``, and ``lossy`` for images stored as JPEG."""
        return ["synthetic", "lossy"] if self.lossy else ["synthetic"]

    slice_labels = labels

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of the split."""
        return sum(last - first for _, first, last in split_ranges(task, split, self._generator(task).SIZES))

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Draw a split, in the order of upstream's records."""
        generator = self._generator(task)
        if limit is not None and limit <= FEW and not self.records:
            return self._few(task, split, size, resize, limit)
        if getattr(generator, "SLOW", False) or (self.records and self.has(task)):
            root = prepared_root(generator, task, self.lossy)
            return TFDSSource(root, official=False).load(task, split, size, resize, limit)
        return self.pick(task, split, subset(self.count(task, split), limit), size, resize)

    def _few(self, task: VTABTask, split: str, size: int, resize: str, limit: int) -> Pixels:
        """A small part of a split, drawn once in a process."""
        key = (self.fingerprint(task, (split,)), size, resize, limit)
        if key not in _kept:
            if len(_kept) >= KEPT:
                _kept.clear()
            _kept[key] = self.pick(task, split, subset(self.count(task, split), limit), size, resize)
        return _kept[key]

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split; draws no image."""
        classes: list[int] = []
        for name, indices in self._members(task, split, np.arange(self.count(task, split))):
            classes += self._classes(task, name, indices)
        return np.array(classes, dtype=np.int64)

    def chunks(self, task: VTABTask, split: str, size: int, resize: str, positions: Indices) -> Iterator[Pixels]:
        for start in range(0, len(positions), CHUNK):
            yield self.pick(task, split, positions[start : start + CHUNK], size, resize)

    def pick(self, task: VTABTask, split: str, positions: Indices, size: int, resize: str) -> Pixels:
        """Draw the images at ascending positions of a split."""
        generator = self._generator(task)
        pieces, classes, keys = [], [], []
        for name, indices in self._members(task, split, positions):
            pieces.append(generator.render(name, indices))
            classes += self._classes(task, name, indices)
            keys += [generator.key(name, int(index)) for index in indices]
        drawn = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        images, native = fit_all(through_jpeg(drawn) if self.lossy else drawn, size, resize)
        title = task.builder if self.has(task) else f"stand-in/{task.name}"
        return Pixels(
            images,
            np.array(classes, dtype=np.int64),
            tuple(keys),
            {
                "source": f"synthetic:{title}@{generator.REVISION}",
                "decoder": "none",
                "resize": "native" if native else resize,
            },
        )

    def _members(self, task: VTABTask, split: str, positions: Indices) -> list[tuple[str, Indices]]:
        """Upstream split and examples' numbers at ascending positions of a split, run by run."""
        generator, start, members = self._generator(task), 0, []
        for name, first, last in split_ranges(task, split, generator.SIZES):
            mine = positions[(positions >= start) & (positions < start + last - first)] - start + first
            start += last - first
            if len(mine):
                order = _order(generator, name) if self.has(task) else numbered_order(name, generator.SIZES[name])
                members.append((name, order[mine]))
        return members

    def _classes(self, task: VTABTask, name: str, indices: Indices) -> list[int]:
        key, rule = (task.label_key, task.label_rule) if self.has(task) else ("label", None)
        return [label_rules.label_of(row, key, rule) for row in self._generator(task).examples(name, indices)]

    def _generator(self, task: VTABTask) -> Any:
        if self.has(task):
            return importlib.import_module(f"headwise.data.synthetic.{task.builder}")
        if task.builder is None:
            raise DataError(f"there is no generator for task {task.name!r}; use data=folder data.root=PATH")
        return StandIn(task)


@cache
def _generators() -> frozenset[str]:
    """Names of the modules that draw an upstream set."""
    return frozenset(module.name for module in pkgutil.iter_modules(synthetic.__path__)) - SHARED


@lru_cache(maxsize=4)
def _order(generator: Any, split: str) -> Indices:
    """Order of a generator's examples in upstream's records."""
    return record_order(split, (generator.key(split, i) for i in range(generator.SIZES[split])))
