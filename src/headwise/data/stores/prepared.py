"""Prepared upstream directories: ``<root>/<builder>[/<config>]/<version>``, their description and their record files.

Standard library only: counts and fingerprints of a directory that was read before need no data library.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from headwise.errors import DataError
from headwise.storage.hashes import stamp_of
from headwise.storage.plain import read_json

INFO = "dataset_info.json"
FEATURES = "features.json"
MARKER = "synthetic.json"
"""Lies beside INFO where a generator drew the images: ``{"generator": NAME, "revision": N}``."""
FORMATS = ("array_record", "tfrecord")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
MAX_RECORD = 1 << 30
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CRC32C = 0x82F63B78
_LIBRARY = "tensorflow_datasets."
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
"""Keys of a feature's description under which the library looks for a class, the last one in its old format."""


@dataclass(frozen=True)
class PreparedSet:
    """One prepared directory.

    Args:
        path: the version's folder.
        builder, version: what it holds.
        format: array_record or tfrecord.
        sizes: examples of each upstream split.
        shards: record files of each split with their number of examples, in order.
        synthetic: ``generator@revision`` where the images were drawn, else None.
    """

    path: Path
    builder: str
    version: str
    format: str
    sizes: Mapping[str, int]
    shards: Mapping[str, Sequence[tuple[Path, int]]]
    synthetic: str | None = None

    def stamp(self) -> list[int]:
        """What changes when a file does that decides what is read."""
        files = [self.path / INFO, self.path / FEATURES, *(file for shard in self.shards.values() for file, _ in shard)]
        return stamp_of(*(file.stat() for file in files))


def versions_present(root: Path, builder: str, config: str | None) -> list[str]:
    """Versions of a builder that are completely written under a root, oldest first."""
    base = root / builder / (config or "")
    if not base.is_dir():
        return []
    versions = [path.name for path in base.iterdir() if _VERSION.fullmatch(path.name) and (path / INFO).is_file()]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def find(root: Path, builder: str, config: str | None, accepted: Sequence[str], task: str) -> PreparedSet:
    """The prepared directory of a builder, as upstream names it, in the first `accepted` version that is there.

    Versions are accepted in their order; ``*`` matches any number. DataError, naming the task, if there is none, its
    version is not accepted, or it is damaged.
    """
    name = builder if config is None else f"{builder}/{config}"
    present = versions_present(root, builder, config)
    for pattern in accepted:
        matching = [version for version in present if fnmatchcase(version, pattern)]
        if matching:
            return read(root / builder / (config or "") / matching[-1], builder)
    if present:
        raise DataError(
            f"task {task!r}: {str(root / name)!r} holds version {', '.join(present)}; accepted: {', '.join(accepted)}"
        )
    raise DataError(
        f"task {task!r}: {name!r} is not prepared in {str(root)!r}; run: python scripts/prepare_vtab.py --tasks {task}"
    )


def read(path: Path, builder: str) -> PreparedSet:
    """Read the description of a prepared directory and check that all its record files are there.

    Raises:
        DataError: if the description is damaged, the format unknown, or a file missing or empty.
    """
    file = path / INFO
    try:
        info = read_json(file)
        # descriptions without a format are of tfrecord files
        form = str(info.get("fileFormat") or "tfrecord")
        splits = {str(split["name"]): split for split in info["splits"]}
        shards = {name: _shards(path, str(info.get("name", builder)), split, form) for name, split in splits.items()}
        version = str(info["version"])
        if version != path.name:
            raise ValueError(f"it says version {version}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: is damaged ({type(error).__name__}: {error}); prepare the set again") from error
    if form not in FORMATS:
        raise DataError(f"{file}: records are in format {form!r}; readable: {', '.join(FORMATS)}")
    if not (path / FEATURES).is_file():
        raise DataError(f"{path}: {FEATURES} is missing; prepare the set again")
    for split in shards.values():
        for shard, count in split:
            # a shard that should hold nothing may be empty, or left out
            if count and not (shard.is_file() and shard.stat().st_size):
                raise DataError(f"{shard}: is missing or empty, it should hold {count} examples; prepare the set again")
    sizes = {name: sum(count for _, count in split) for name, split in shards.items()}
    return PreparedSet(path, builder, version, form, sizes, shards, _generator(path))


def check_features(file: Path) -> None:
    """Check that the description of a set's features names classes of the data library only, which imports them.

    Raises:
        DataError: if it names another, or cannot be read.
    """
    try:
        waiting = [read_json(file)]
        while waiting:
            node = waiting.pop()
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                if isinstance(value, dict | list):
                    waiting.append(value)
                elif key in _CLASS_KEYS and not str(value).startswith(_LIBRARY):
                    raise DataError(f"{file}: names the class {str(value)[:100]!r}; allowed are those of {_LIBRARY}*")
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: is damaged ({type(error).__name__}: {error}); prepare the set again") from error


def _shards(path: Path, dataset: str, split: Mapping[str, Any], form: str) -> list[tuple[Path, int]]:
    counts = [int(count) for count in split["shardLengths"]]
    files = []
    for index, count in enumerate(counts):
        name = str(split.get("filepathTemplate") or TEMPLATE)
        parts = {"DATASET": dataset, "SPLIT": split["name"], "FILEFORMAT": form, "SHARD_INDEX": f"{index:05d}"}
        parts |= {"NUM_SHARDS": f"{len(counts):05d}", "SHARD_X_OF_Y": f"{index:05d}-of-{len(counts):05d}"}
        for key, value in parts.items():
            name = name.replace(f"{{{key}}}", str(value))
        if "{" in name or os.sep in name:
            raise ValueError(f"file name {name!r} cannot be resolved")
        files.append((path / name, count))
    return files


def _generator(path: Path) -> str | None:
    file = path / MARKER
    if not file.exists():
        return None
    try:
        marker = read_json(file)
        return f"{marker['generator']}@{marker['revision']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is damaged ({error})") from error


def tfrecords(shards: Sequence[tuple[Path, int]], positions: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Read chosen records of tfrecord files: length (8 bytes), its checksum (4), the record, its checksum (4).

    Positions ascend and count over all files, each given with its number of records. DataError if a frame is cut off,
    its length fails its checksum, or a file holds fewer records than it should.
    """
    # positions ascend, so every file is read at most once, from its beginning to the last one that is wanted
    wanted = iter(positions)
    target = next(wanted, None)
    begin = 0
    for file, count in shards:
        if target is None:
            return
        if target < begin + count:
            with file.open("rb") as stream:
                for number in range(begin, begin + count):
                    size = _frame(stream.read(12), file, number - begin)
                    if number != target:
                        stream.seek(size + 4, os.SEEK_CUR)
                        continue
                    record = stream.read(size)
                    if len(record) < size or len(stream.read(4)) < 4:
                        raise DataError(f"{file}: is cut off in record {number - begin}; prepare the set again")
                    yield number, record
                    target = next(wanted, None)
                    if target is None or target >= begin + count:
                        break
        begin += count
    if target is not None:
        raise DataError(f"record {target} is asked for, the files hold {begin}")


def _frame(head: bytes, file: Path, number: int) -> int:
    """Length of a record from the 12 bytes before it."""
    if len(head) == 12:
        size, check = struct.unpack("<QI", head)
        if check == masked_crc32c(head[:8]) and size <= MAX_RECORD:
            return int(size)
    raise DataError(f"{file}: record {number} is {'damaged' if head else 'missing'}; prepare the set again")


def masked_crc32c(data: bytes) -> int:
    """The checksum of tfrecord files: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CRC32C if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
