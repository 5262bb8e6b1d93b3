"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed over it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwise.errors import StorageError

TEMPORARY = ".tmp"
"""Ends the stem of files that are being written."""
_LEFT_OVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp(\.[A-Za-z0-9]+)?")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on a clean exit it is flushed and renamed to ``path``.

    Readers see the old file or the new one, never a part. An error or an interrupt inside the block leaves ``path``
    as it was. The folder is made if it is missing, and the file gets the user's umask, whatever wrote it. The temporary
    name keeps the suffix of ``path``, because some writers choose their format by it.

    Raises:
        StorageError: naming ``path``, for whatever the system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}{TEMPORARY}{path.suffix}")
    with errors_naming(path):
        make_folder(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder; a file is to be written there")
        try:
            mode = _usual_mode(temporary)
            yield temporary
            temporary.chmod(mode)
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            with contextlib.suppress(OSError):  # a second error must not hide the first
                temporary.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The mode that new files get in the folder of ``path``, by making one and removing it again."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


@contextlib.contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Turn what the system refuses inside into a `StorageError` that names ``path``, not a temporary file.

    Errors of files that lie elsewhere, such as one that is copied, pass.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent not in (path.parent, *path.parents):
            raise
        failure = StorageError(f"{path} cannot be written: {_reason(error)}")
        failure.errno = error.errno
        raise failure from error


def _reason(error: OSError) -> str:
    if error.errno == errno.EEXIST and error.filename is not None and Path(os.fsdecode(error.filename)).is_symlink():
        return "a symbolic link lies there that leads to no folder"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file lies where a folder should be"
    full = "; make room and run the same command again, what is finished stays"
    return f"{error.strerror or error}{full if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''}"


def at_home(path: str | Path) -> Path:
    """A path whose ``~`` is the home folder, ``~name`` another user's; StorageError if there is no such user."""
    there = os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises another error
    if str(there).startswith("~"):
        user = str(there).partition("/")[0]
        raise StorageError(
            f"{str(path)[:300]!r}: there is no user {user[1:]!r} here; a folder of that name is ./{user}"
        )
    return Path(there)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there; StorageError naming ``folder``."""
    with errors_naming(folder):
        folder.mkdir(parents=True, exist_ok=True)


def tidy(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder that nobody else writes to now."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if _LEFT_OVER.fullmatch(file.name):
                file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; bytes of a file's name that are no text appear as ``\\udcff``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
