"""List-file trees: ``<folder>/<split>.txt`` with one ``relative/path label`` per line, and the content hash of one.

Standard library only. Nothing is ever written beside the images: hashes are remembered in ``$HEADWISE_CACHE``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise import atomic
from headwise.errors import DataError
from headwise.results.fingerprint import cache_folder
from headwise.results.plain import STORES, read_json

JPEG_MAGIC = b"\xff\xd8\xff"
SETTLED_SECONDS = 0.1
"""A file changed more recently could change again within one tick of its time stamp, so its hash is not remembered."""


@dataclass(frozen=True)
class Entry:
    """One line of a list file: an image and its class."""

    path: str
    label: int
    file: Path
    line: int

    @property
    def where(self) -> str:
        """List file and line, for errors."""
        return f"{self.file}, line {self.line}"


def read_list(file: Path, num_classes: int) -> list[Entry]:
    """Read a list file. The label follows the last space, so paths may hold spaces; blank lines may end the file.

    Raises:
        DataError: naming file and line, if the file is missing, empty or no text, a line is malformed, or a label is
            not in 0 .. num_classes - 1.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = text.rstrip().split("\n") if text.strip() else []
    if not lines:
        raise DataError(f"{file}: is empty; it needs one 'relative/path label' per line")
    entries = []
    for number, line in enumerate(lines, start=1):
        path, _, label = line.rstrip("\r").rpartition(" ")
        if not path.strip() or "\0" in path or not re.fullmatch(r"-?[0-9]{1,18}", label):
            raise DataError(
                f"{file}, line {number}: expected 'relative/path label', the label a whole number, got {line[:200]!r}"
            )
        if not 0 <= int(label) < num_classes:
            raise DataError(
                f"{file}, line {number}: label {int(label)} is outside of 0..{num_classes - 1} ({num_classes} classes)"
            )
        entries.append(Entry(path, int(label), file, number))
    return entries


def locate(entries: Sequence[Entry], folder: Path, root: Path) -> list[tuple[Path, os.stat_result]]:
    """Find the images of list entries, after every symbolic link.

    Args:
        entries: lines of a list file in ``folder``.
        folder: what the entries' paths are relative to.
        root: the tree that no path may leave; ``folder`` itself may be a link that leads elsewhere.
    Returns:
        path and state of each file.
    Raises:
        DataError: naming list file and line, if an image is missing or lies outside.
    """
    bases = {os.path.realpath(root), os.path.realpath(folder)}
    directories: dict[str, str] = {}
    found = []
    for entry in entries:
        if entry.path.startswith(os.sep):
            raise DataError(
                f"{entry.where}: path {entry.path[:300]!r} is absolute; give it relative to {str(folder)!r}"
            )
        path = os.path.join(folder, entry.path)  # noqa: PTH118 - pathlib is several times slower here
        parent, name = os.path.split(path)
        if parent not in directories:
            directories[parent] = os.path.realpath(parent)
        real = directories[parent] + os.sep + name
        if name in ("", ".", "..") or os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        if not any(real.startswith(base.rstrip(os.sep) + os.sep) for base in bases):
            raise DataError(
                f"{entry.where}: path {entry.path[:300]!r} leaves the data root {str(root)!r}; use a path inside"
            )
        try:
            state = os.stat(real)  # noqa: PTH116
        except OSError as error:
            raise DataError(f"{entry.where}: image {entry.path[:300]!r} not found in {str(folder)!r}") from error
        if not os.path.isfile(real):  # noqa: PTH113
            raise DataError(f"{entry.where}: {entry.path[:300]!r} in {str(folder)!r} is not a file")
        found.append((Path(real), state))
    return found


@dataclass(frozen=True)
class Digest:
    """Content of one image file: sha256 of its bytes, and whether it is a JPEG."""

    sha256: str
    is_jpeg: bool


def digests(entries: Sequence[Entry], folder: Path, root: Path) -> list[Digest]:
    """Content hashes of the images of list entries. Files whose size and times are unchanged are not read again.

    Raises:
        DataError: as ``locate``.
    """
    store = cache_folder() / "digests" / f"{hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:24]}.json"
    known = _read_store(store)
    result, fresh = [], False
    for path, state in locate(entries, folder, root):
        stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        item = known.get(str(path))
        if item is None or item[:3] != stamp:
            digest = _read_digest(path)
            if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
                known[str(path)] = [*stamp, digest.sha256, digest.is_jpeg]
                fresh = True
            result.append(digest)
        else:
            result.append(Digest(item[3], item[4]))
    if fresh:
        _write_store(store, known)
    return result


def _read_digest(path: Path) -> Digest:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 20)
            is_jpeg = head.startswith(JPEG_MAGIC)
            while head:
                sha.update(head)
                head = stream.read(1 << 20)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Digest(sha.hexdigest(), is_jpeg)


def _read_store(store: Path) -> dict[str, list[Any]]:
    """Remembered hashes; a file that cannot be read or is not what it should be counts as none."""
    try:
        known = read_json(store, STORES)
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: item for key, item in known.items() if isinstance(item, list) and len(item) == 5}


def _write_store(store: Path, known: dict[str, list[Any]]) -> None:
    """Replace the remembered hashes at once. A cache that cannot be written costs time, not the run."""
    with suppress(OSError):
        atomic.write_text(store, json.dumps(known, separators=(",", ":")))
