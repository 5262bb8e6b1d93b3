"""Hashes of what files hold, remembered: a file is read again only when its size or one of its times changes.

Nothing is written beside the files: what is remembered lies in `cache_folder`. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from headwise.errors import ConfigError
from headwise.storage import atomic
from headwise.storage.plain import STORES, no_file, read_json

SETTLED_SECONDS = 2.0
"""A file that changed more recently could change again within one tick of its times (two seconds on some file
systems), so its hash is not remembered."""


def cache_folder() -> Path:
    """Return ``$HEADWISE_CACHE``, or ``~/.cache/headwise``; it need not exist."""
    return Path(os.environ.get("HEADWISE_CACHE") or Path.home() / ".cache" / "headwise")


def stamp_of(*states: os.stat_result) -> list[int]:
    """What changes when one of some files does: size, time of the content and time of the state of each.

    The third cannot be set by a program, so a copy that keeps the time of its content is told from what it replaced.
    """
    return [number for state in states for number in (state.st_size, state.st_mtime_ns, state.st_ctime_ns)]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, 64 hex digits, always reading it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Remembered:
    """Hashes of contents by name, in one JSON file; each is valid as long as the stamp that it was kept with.

    A file that cannot be read or is not what it should be counts as none, and one that cannot be written costs time,
    not the run. Any number of processes may use it at once: the last to save wins.

    Args:
        kind: folder in the cache.
        owner: what the names belong to, such as the folder of a list-file tree.
        cache: None: `cache_folder`.
    """

    def __init__(self, kind: str, owner: str | Path, cache: Path | None = None) -> None:
        name = hashlib.sha256(os.fsencode(owner)).hexdigest()[:24]
        self._note = (cache or cache_folder()) / kind / f"{name}.json"
        self._rows: dict[str, Any] = {}
        self._is_new = False
        with suppress(OSError, ValueError):
            rows = read_json(self._note, STORES)
            self._rows = rows if isinstance(rows, dict) else {}

    def get(self, name: str, stamp: Sequence[int]) -> tuple[str, bool] | None:
        """The hash that was kept under a name and this stamp, and its flag; None if there is none."""
        match self._rows.get(name):
            case [*kept, str(sha256), bool(flag)] if kept == list(stamp) and len(sha256) == 64:
                return sha256, flag
        return None

    def keep(self, name: str, stamp: Sequence[int], sha256: str, flag: bool = False) -> None:
        """Remember a hash, and one thing more that reading told, unless a file changed too recently."""
        times = [*stamp[1::3], *stamp[2::3]]
        if time.time() - max(times) / 1e9 > SETTLED_SECONDS:
            self._rows[name] = [*stamp, sha256, flag]
            self._is_new = True

    def save(self) -> None:
        """Write what is new."""
        if self._is_new:
            with suppress(OSError):
                atomic.write_text(self._note, json.dumps(self._rows, separators=(",", ":")))


def file_sha256(path: str | Path, cache: Path | None = None) -> str:
    """Return the sha256 of a file's content, 64 hex digits, reading it only if it changed since the last time.

    It is remembered in `cache`, or in `cache_folder`. ConfigError if ``path`` is no readable file, or keeps changing
    while it is read.
    """
    try:
        source = Path(path).resolve(strict=True)
        state = source.stat()
        if why := no_file(source):
            raise ConfigError(f"cannot hash {path}: it {why}; a readable file is needed")
        remembered, stamp = Remembered("sha256", source, cache), stamp_of(state)
        if kept := remembered.get(str(source), stamp):
            return kept[0]
        sha256, after = sha256_of(source), stamp_of(source.stat())
    except OSError as error:
        raise ConfigError(f"cannot hash {path}: {error.strerror or error}; a readable file is needed") from error
    if after != stamp:
        raise ConfigError(f"{path} changed while it was read; hash it when it is complete")
    remembered.keep(str(source), stamp, sha256)
    remembered.save()
    return sha256
