"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed over it."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on a clean exit it is flushed and renamed to ``path``.

    Readers see the old file or the new one, never a part. An error or an interrupt inside the block leaves ``path``
    as it was. The folder is made if it is missing. The temporary name keeps the suffix of ``path``, because some
    writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically.

    Raises:
        ValueError: if a number is not finite; TypeError: if a value has no JSON form. Nothing is written then.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk; folders are skipped where the system cannot do it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
