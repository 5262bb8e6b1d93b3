"""List-file trees: ``<folder>/<split>.txt`` with one ``relative/path label`` per line, and the content hash of one.

Standard library only. Nothing is ever written beside the images: hashes are remembered in ``$HEADWISE_CACHE``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwise.errors import DataError
from headwise.storage.hashes import Remembered, stamp_of
from headwise.storage.plain import no_file

JPEG_MAGIC = b"\xff\xd8\xff"
BLANKS = " \t"
MOST_DIGITS = 18
"""Of a label; Python refuses to make numbers of thousands."""
SHOWN, SHOWN_DIGITS = 200, 40
"""Characters of a line, and of a label, that an error shows."""


@dataclass(frozen=True)
class ListedImage:
    """One line of a list file: an image and its class."""

    path: str
    label: int
    file: Path
    line: int

    @property
    def where(self) -> str:
        """List file and line, for errors."""
        return f"{self.file}, line {self.line}"


def read_list(file: Path, num_classes: int) -> list[ListedImage]:
    """Read a list file. The label follows the last space, so paths may hold spaces; blank lines may end the file.

    Blanks and tabs after a label mean nothing.

    Raises:
        DataError: naming file and line, if the file is missing, empty or no text, a line is malformed, or a label is
            not in 0 .. num_classes - 1.
    """
    if why := no_file(file):
        raise DataError(f"{file}: {why}; a list file is needed")
    try:
        # Windows' editors begin a text with a mark, which would become part of the first path
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{file}: is empty; it needs one 'relative/path label' per line")
    entries = []
    for number, line in enumerate(lines, start=1):
        path, _, label = line.rstrip(BLANKS).rpartition(" ")
        if not path.strip() or "\0" in path or not re.fullmatch(r"-?[0-9]+", label):
            raise DataError(
                f"{file}, line {number}: expected 'relative/path label', the label a whole number, got {_short(line)}"
            )
        digits = label.lstrip("0") or "0"
        if label[0] == "-" or len(digits) > MOST_DIGITS or int(digits) >= num_classes:
            raise DataError(
                f"{file}, line {number}: label {label[:SHOWN_DIGITS]} is outside of 0..{num_classes - 1} "
                f"({num_classes} classes)"
            )
        entries.append(ListedImage(path, int(digits), file, number))
    return entries


def _short(text: str) -> str:
    """What a file holds, for an error: quoted, and not longer than anybody reads."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def locate(entries: Sequence[ListedImage], folder: Path, root: Path) -> list[tuple[Path, os.stat_result]]:
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
    located = []
    for entry in entries:
        if entry.path.startswith(os.sep):
            raise DataError(
                f"{entry.where}: path {_short(entry.path)} is absolute; give it relative to {str(folder)!r}"
            )
        path = os.path.join(folder, entry.path)  # noqa: PTH118 - pathlib is several times slower here
        parent, name = os.path.split(path)
        if name in ("", ".", ".."):  # a folder, whatever it is called
            raise DataError(f"{entry.where}: {_short(entry.path)} in {str(folder)!r} is not a file")
        # links are followed once a folder and not once an image
        if parent not in directories:
            directories[parent] = os.path.realpath(parent)
        real = directories[parent] + os.sep + name
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        # with the separator at its end: /data2 does not lie in /data
        if not any(real.startswith(base.rstrip(os.sep) + os.sep) for base in bases):
            raise DataError(
                f"{entry.where}: path {_short(entry.path)} leaves the data root {str(root)!r}; use a path inside"
            )
        try:
            state = os.stat(real)  # noqa: PTH116
        except OSError as error:
            raise DataError(f"{entry.where}: image {_short(entry.path)} not found in {str(folder)!r}") from error
        if not os.path.isfile(real):  # noqa: PTH113
            raise DataError(f"{entry.where}: {_short(entry.path)} in {str(folder)!r} is not a file")
        located.append((Path(real), state))
    return located


@dataclass(frozen=True)
class Digest:
    """Content of one image file: sha256 of its bytes, and whether it is a JPEG."""

    sha256: str
    is_jpeg: bool


Contents = Mapping[str, Sequence[tuple[ListedImage, Digest]]]
"""By split the lines of its list, each with the content of the image that it names."""


def digests(entries: Sequence[ListedImage], folder: Path, root: Path) -> list[Digest]:
    """Content hashes of the images of list entries. Files whose size and times are unchanged are not read again.

    Raises:
        DataError: as ``locate``.
    """
    remembered, result = Remembered("digests", os.path.realpath(folder)), []
    for path, state in locate(entries, folder, root):
        stamp = stamp_of(state)
        kept = remembered.get(str(path), stamp)
        digest = Digest(*kept) if kept else _read_digest(path)
        if not kept:
            remembered.keep(str(path), stamp, digest.sha256, digest.is_jpeg)
        result.append(digest)
    remembered.save()
    return result


def _read_digest(path: Path) -> Digest:
    try:
        with path.open("rb") as stream:
            is_jpeg = stream.read(len(JPEG_MAGIC)) == JPEG_MAGIC
            stream.seek(0)
            return Digest(hashlib.file_digest(stream, "sha256").hexdigest(), is_jpeg)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
