"""Which examples make a split: the order of upstream's records, their slices, and fixed subsets. Numpy only.

Upstream writes records sorted by the 128-bit md5 of the split's name followed by the example's key, and VTAB-1k cuts
its slices from that order; so membership follows from the keys alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from headwise.data.tasks import VTABTask, check_split
from headwise.errors import ConfigError, DataError, suggest

Indices = NDArray[np.int64]


def record_order(split: str, keys: Iterable[str]) -> Indices:
    """Positions of the examples' keys in the order in which upstream stores them, (N,): that of the first record first.

    The name of upstream's split is the salt of the hash.
    """
    salt = hashlib.md5(split.encode())
    digests = bytearray()
    for key in keys:
        state = salt.copy()
        state.update(key.encode())
        digests += state.digest()
    # two big-endian halves, (N, 2), sort as the 16 bytes do; the key that lexsort sorts by first is its last
    halves = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)


# dSprites alone has 737,280 keys to hash
@lru_cache(maxsize=8)
def numbered_order(split: str, size: int) -> Indices:
    """As `record_order`, of `size` examples whose keys are their running numbers."""
    return record_order(split, map(str, range(size)))


def parse_slice(text: str, sizes: Mapping[str, int]) -> tuple[str, int, int]:
    """Resolve a slice such as ``train[80%:90%]``, ``test[:200]`` or ``test`` against the sizes of the splits.

    Gives the split's name, and the first and one-past-last record; per cents are rounded to the nearest record.
    ConfigError if the text is no slice or names an unknown split, DataError if a bound lies beyond the end of the
    split.
    """
    match = re.fullmatch(r"(\w+)(?:\[(?:(\d+)(%?))?:(?:(\d+)(%?))?\])?", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a slice; allowed: 'train', 'train[:800]', 'train[80%:90%]'")
    split, first, first_percent, last, last_percent = match.groups()
    if split not in sizes:
        raise ConfigError(f"slice {text!r}: unknown split {split!r}{suggest(split, sizes)}")
    size = sizes[split]

    def bound(number: str | None, percent: str | None, default: int) -> int:
        if number is None:
            return default
        value = round(int(number) * size / 100) if percent else int(number)
        if value > size:
            raise DataError(f"slice {text!r} reaches record {value}, but split {split!r} has {size}")
        return value

    return split, bound(first, first_percent, 0), bound(last, last_percent, size)


def split_ranges(
    task: VTABTask, split: str, sizes: Mapping[str, int], clip: bool = False
) -> list[tuple[str, int, int]]:
    """The runs of upstream records that make one of the four splits, in order: (upstream split, first, one past last).

    The task's ``splits`` say of which slices; `sizes` are those of upstream's splits. With `clip` a split takes what
    there is where it holds fewer than 800 or 200 records. DataError if a run would be too short, or empty.
    """
    check_split(split)
    if split == "train800val200":
        return split_ranges(task, "train800", sizes, clip) + split_ranges(task, "val200", sizes, clip)
    part, count = {"train800": ("train", 800), "val200": ("val", 200), "test": ("test", None)}[split]
    name, first, last = parse_slice(task.splits[part], sizes)
    if clip and count is not None:
        count = min(count, last - first)
    if first >= last:
        raise DataError(f"task {task.name!r}: {split} needs {task.splits[part]!r}, which has no record")
    if count is None:
        return [(name, first, last)]
    if first + count > last:
        raise DataError(f"task {task.name!r}: {split} needs {count} records, {task.splits[part]!r} has {last - first}")
    return [(name, first, first + count)]


def subset(total: int, limit: int | None) -> Indices:
    """Positions of a fixed subset, ascending: the ``limit`` positions whose md5 of ``subset/<position>`` is smallest.

    It depends on nothing but the two numbers, so every method, seed and machine sees the same images, and a smaller
    subset lies within a larger one. Lists sorted by class are sampled evenly, where the first N would be one class.

    Raises:
        ConfigError: if ``limit`` is below 1.
    """
    if limit is None or limit >= total:
        return np.arange(total, dtype=np.int64)
    if limit < 1:
        raise ConfigError(f"a subset needs at least 1 image, got {limit}; leave it empty (null) for all {total}")
    return np.sort(record_order("subset/", (str(i) for i in range(total)))[:limit])
