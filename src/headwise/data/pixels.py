"""What every source of images offers, and what it gives: uint8 pixels with their classes. Numpy only.

Legend: N images, S the side of the square that the network sees, C channels (3, or 1 for grey tasks).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwise.data.tasks import VTABTask

FINAL_SPLITS = ("train800val200", "test")
CHUNK = 512
"""Images that are decoded at a time where a split is too large for the memory."""
T = TypeVar("T")


@dataclass(frozen=True)
class Pixels:
    """Images of one split with their classes.

    Args:
        images: (N, S, S, C) uint8, or (N, H, W, C) where small images keep their native size.
        labels: (N,) int64; (N, K) of 0 and 1 where images may have several.
        keys: what identifies each image in its source, such as its relative path.
        provenance: source, decoder and resize, as plain values for the result file.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Something that has the images of tasks."""

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        """Hash of everything that decides labels and pixels before resizing; never of where files lie."""
        ...

    def labels(self, task: VTABTask) -> list[str]:
        """What a reader must know about numbers made with these images: synthetic, unofficial split, lossy."""
        ...

    def count(self, task: VTABTask, split: str) -> int:
        """Number of images of a split; reads none of them."""
        ...

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        """Read a split, or a fixed subset of ``limit`` images of it (see ``headwise.data.splits.subset``)."""
        ...


class Cacheable(Source, Protocol):
    """A source whose images a cache can keep."""

    def chunks(self, task: VTABTask, split: str, size: int, resize: str) -> Iterator[Pixels]:
        """The images of a split in its order, some hundred at a time."""
        ...

    def all_labels(self, task: VTABTask, split: str) -> NDArray[np.int64]:
        """(N,) classes of a split; decodes no image."""
        ...

    def origin(self, task: VTABTask) -> dict[str, str]:
        """Plain facts that a cache records: ``kind`` (tfds, folder), and builder and version where there is one."""
        ...


def chunked(items: Iterator[T]) -> Iterator[list[T]]:
    """Items, `CHUNK` of them at a time."""
    while batch := list(itertools.islice(items, CHUNK)):
        yield batch


def decoder() -> str:
    """Name and version of the library that decodes."""
    return f"pillow {importlib.import_module('PIL').__version__}"
