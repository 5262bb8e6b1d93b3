"""The images of one task for many runs: read and decoded once. Numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headwise.data.bulk import mapped
from headwise.data.pixels import FINAL_SPLITS, Pixels, Source
from headwise.data.tasks import VTABTask

SMALL = 256 << 20
"""Bytes up to which the images of a split stay in memory: 1,000 training images of 224 pixels are 150 MB."""


class KeptImages:
    """Splits of the task that was asked for last, each small or memory-mapped."""

    def __init__(self) -> None:
        self._task: VTABTask | None = None
        self._splits: dict[tuple[Any, ...], Pixels] = {}

    def of(self, source: Source, config: Mapping[str, Any], content: str) -> Source:
        """A source whose splits are kept, made from `config`; for `content` see `Source.fingerprint`."""
        return _Kept(source, self, (json.dumps(config, sort_keys=True, default=str), content))

    def load(self, source: Source, content: tuple[str, ...], task: VTABTask, split: str, *how: Any) -> Pixels:
        """As `Source.load`; of another task's images none are kept."""
        if self._task != task:
            self._task = task
            self._splits.clear()
        key = (*content, split, *how)
        if key in self._splits:
            return self._splits[key]
        pixels = source.load(task, split, *how)
        pixels.images.flags.writeable = pixels.labels.flags.writeable = False  # they are the next run's as well
        if mapped(pixels.images) is not None or pixels.images.nbytes <= SMALL:
            self._splits[key] = pixels
        return pixels


class _Kept:
    """A source that looks among kept images first."""

    def __init__(self, source: Source, kept: KeptImages, content: tuple[str, ...]) -> None:
        self.source, self.kept, self.content = source, kept, content

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        return self.source.fingerprint(task, splits)

    def labels(self, task: VTABTask) -> list[str]:
        return self.source.labels(task)

    def count(self, task: VTABTask, split: str) -> int:
        return self.source.count(task, split)

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        return self.kept.load(self.source, self.content, task, split, size, resize, limit)
