"""Scripts replace what they wrote themselves, and no other file, unless told to. Standard library only.

What a script has written is noted in the cache, as the file's place and the sha256 of its content. A file that is not
noted, or that somebody has changed since, is not replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from headwise.errors import ConfigError
from headwise.storage import atomic
from headwise.storage.hashes import cache_folder, sha256_of

_OF_A_RUN = re.compile(
    r"(result|phase)\.json|phase(-\d+)?\.safetensors|config\.yaml|metrics\.csv|curve\.png|claim-\d+|last\..*"
)
"""What lies in the folder of a run, or of a phase that runs share."""


@contextlib.contextmanager
def writing(*files: Path | None, force: bool, reads: Sequence[Path] = ()) -> Iterator[None]:
    """Refuse, before any work, to replace a file that is not the script's own; note what is written inside.

    Args:
        files: that the block writes; None for those that were not asked for.
        force: replace them whatever they are.
        reads: files that the block reads; not even `force` replaces one of them.

    Raises:
        ConfigError: for a file of a finished run, whatever `force` says; for one that is somebody else's, a folder, a
            device, in a folder that nothing can be written to, one file given twice, or one that is read.
    """
    chosen = [file for file in files if file is not None]
    places = [
        Path(os.path.realpath(file.parent), file.name) for file in chosen
    ]  # a link is replaced, not what it leads to
    for file, place in zip(chosen, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{file} is to be written twice; give different files")
        if _is_of_a_run(place):
            raise ConfigError(f"{file} belongs to a finished run or phase, which nothing replaces; name another file")
        if any(os.path.realpath(read) == os.path.realpath(place) for read in reads):
            raise ConfigError(f"{file} is read here; name another file to write")
        check_file(file)
        if not force and not _may_replace(place):
            raise ConfigError(f"{file} was not written by this tool, or changed since; --force replaces it")
    before = [_stamp(place) for place in places]
    try:
        yield
    finally:
        for place, stamp in zip(places, before, strict=True):
            if _stamp(place) not in (stamp, None):
                with contextlib.suppress(OSError):  # the note is a convenience: without it, --force is asked for
                    atomic.write_text(_note(place), sha256_of(place))


def check_file(file: Path) -> None:
    """Refuse what can be neither made nor replaced: a folder, a device, a file in a folder that takes none."""
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file in it")
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is a pipe or a device, not a file; nothing replaces it")
    _check_place(file, file.parent)


def check_folder(folder: Path) -> None:
    """Refuse a folder that can be neither made nor written to."""
    _check_place(folder, folder)


def _check_place(path: Path, folder: Path) -> None:
    """Refuse a path whose folder cannot be made or written to, by writing to it a file that has no name."""
    above = next(there for there in (folder, *folder.parents) if os.path.lexists(there))
    if not above.is_dir():
        raise ConfigError(f"{path} cannot be written: {above} is no folder")
    try:
        with tempfile.TemporaryFile(dir=above):  # of what root may, or /proc takes, nothing else tells
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {above} takes no file ({error.strerror or error})") from error


def _is_of_a_run(place: Path) -> bool:
    """Whether a file is, or would be, part of the record of a run or of a stored phase."""
    beside = (place.parent / name for name in ("result.json", "phase.json"))
    return _OF_A_RUN.fullmatch(place.name) is not None and any(map(os.path.lexists, beside))


def _may_replace(place: Path) -> bool:
    """Whether nothing would be lost: no file, an empty one, or one that is as a script left it."""
    if place.is_symlink():
        return False
    if not place.exists() or (place.is_file() and place.stat().st_size == 0):
        return True
    try:
        return _note(place).read_text(encoding="ascii") == sha256_of(place)
    except (OSError, ValueError):
        return False


def _note(place: Path) -> Path:
    return cache_folder() / "written" / hashlib.sha256(os.fsencode(place)).hexdigest()[:32]


def _stamp(place: Path) -> tuple[int, int, int] | None:
    """What tells a file that was replaced from the one before; None where there is none."""
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
