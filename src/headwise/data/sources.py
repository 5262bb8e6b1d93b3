"""Where pixels come from: a cache, a list-file tree, prepared upstream directories, a generator, or the first of them.

Numpy, PIL and the standard library only: a finished run is recognised by its fingerprint before torch is imported.
Pixels leave here as uint8; normalisation belongs to the data module.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from headwise.data.bulk import MEMORY
from headwise.data.decode import SHAPES, check_shape
from headwise.data.pixels import FINAL_SPLITS, Pixels, Source
from headwise.data.stores.cache import CacheSource
from headwise.data.stores.folder import FolderSource
from headwise.data.stores.hf import DatasetsSource
from headwise.data.stores.tfds import TFDSSource
from headwise.data.synthetic.drawn import SyntheticSource
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from headwise.schema import targets

__all__ = [
    "FINAL_SPLITS",
    "AutoSource",
    "CacheSource",
    "DatasetsSource",
    "FolderSource",
    "Pixels",
    "Source",
    "SyntheticSource",
    "TFDSSource",
    "source_of",
]

log = logging.getLogger(__name__)


class AutoSource:
    """The first of these that has the task: a cache, the list-file tree or prepared sets under ``root``, a generator.

    What it says of a task is what that one says.

    Args:
        root: folder of a list-file tree, of prepared upstream sets, or of both; None: no such folder.
        cache_dir: folder of the caches; None: ``$HEADWISE_CACHE/vtab``.
        synthetic: whether drawn images may stand in for a task that is nowhere else; never where ``root`` is given.
        official: as for TFDSSource.
        memory, resize: as for FolderSource; other images than those of a list-file tree or a user's own are squashed.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        cache_dir: str | Path | None = None,
        synthetic: bool = True,
        official: bool = True,
        memory: float = MEMORY,
        resize: str = SHAPES[0],
    ) -> None:
        self.shape = check_shape(resize)
        # drawn images come from their generator and never from a cache of them
        self.cache = CacheSource(cache_dir, kinds=("tfds", "folder"))
        self.folder = None if root is None else FolderSource(root, memory, resize)
        self.tfds = None if root is None else TFDSSource(root, official, memory)
        self.synthetic = SyntheticSource() if synthetic else None
        self._chosen: dict[str, Source] = {}

    def resolve(self, task: VTABTask) -> Source:
        """The source that is used for a task, chosen and logged once; DataError, saying what to do, if none has it."""
        if task.name not in self._chosen:
            self._chosen[task.name] = self._choose(task)
        return self._chosen[task.name]

    def _choose(self, task: VTABTask) -> Source:
        if self.shape != SHAPES[0]:
            lists = self._under_root(task)
            if not isinstance(lists, FolderSource):
                raise ConfigError(
                    f"data.resize={self.shape} is for images as they lie, in a list-file tree or class folders under "
                    f"data.root; task {task.name!r} is read from elsewhere"
                )
            return lists
        if not task.is_own and self.cache.has(task):
            log.info("data=auto: task %r is read from the cache in %s", task.name, self.cache.root)
            return self.cache
        under_root = self._under_root(task)
        if under_root is not None:
            return under_root
        drawn = self.synthetic if self.synthetic is not None and self.synthetic.has(task) else None
        if drawn is None:
            raise DataError(
                f"no images for task {task.name!r}: give a list-file tree with data.root=PATH "
                f"(it needs the folder {task.folders[0]!r}) or run: python scripts/prepare_vtab.py --tasks "
                f"{task.name}; there is no generator for this task"
            )
        log.info("data=auto: task %r is drawn by the generator of %r", task.name, task.builder)
        return drawn

    def _under_root(self, task: VTABTask) -> Source | None:
        if self.folder is None or self.tfds is None:
            return None
        if not self.folder.has_lists(task) and self.tfds.has(task):
            log.info("data=auto: task %r is read from prepared records in %s", task.name, self.tfds.root)
            return self.tfds
        try:
            folder = self.folder.folder(task)
        except DataError as error:
            draws = self.synthetic is not None and self.synthetic.has(task)
            raise DataError(f"{error}{'; without data.root, images are drawn' if draws else ''}") from None
        log.info("data=auto: task %r is read from %s", task.name, folder)
        return self.folder

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        return self.resolve(task).fingerprint(task, splits)

    def labels(self, task: VTABTask) -> list[str]:
        return self.resolve(task).labels(task)

    def depth(self, task: VTABTask) -> int | None:
        """As `FolderSource.depth`, of a user's own images."""
        source = self.resolve(task)
        return source.depth(task) if isinstance(source, FolderSource) else None

    def count(self, task: VTABTask, split: str) -> int:
        return self.resolve(task).count(task, split)

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """As the source in use. Where a cache lacks this size, the same images are read from under ``root``."""
        source = self.resolve(task)
        if source is self.cache and not self.cache.has_size(task, size, resize):
            other = self._under_root(task)
            # the run's identity holds the content of the cache: other images under the root are not taken for it
            if other is not None and other.fingerprint(task) == self.cache.fingerprint(task):
                return other.load(task, split, size, resize, limit)
        return source.load(task, split, size, resize, limit)


SOURCES: dict[str, type[Any]] = {
    f"{module}.{kind.__name__}": kind
    for kind in (AutoSource, CacheSource, DatasetsSource, FolderSource, SyntheticSource, TFDSSource)
    for module in (__name__, kind.__module__)
}
"""Every source that a record may name."""


def source_of(spec: Any, trust: Iterable[str] = ()) -> Source:
    """The source that the group ``data`` of a record describes: ``_target_`` and arguments, plain data.

    `trust` are modules of the user's own whose sources may be named as well. ConfigError if it names another class, or
    the arguments do not fit. DataError if its folder is not there.
    """
    return targets.build(spec, SOURCES.get, _is_source, "a source of images", trust)


def _is_source(kind: type) -> bool:
    return all(hasattr(kind, name) for name in ("fingerprint", "labels", "count", "load"))
