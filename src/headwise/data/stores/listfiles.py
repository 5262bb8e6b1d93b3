"""List-file trees: ``<folder>/<split>.txt`` with one ``relative/path label`` per line, and the content hash of one.

Standard library only. Nothing is ever written beside the images: hashes are remembered in ``$HEADWISE_CACHE``.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwise.errors import DataError, suggest
from headwise.storage.hashes import Remembered, stamp_of
from headwise.storage.plain import no_file

JPEG_MAGIC = b"\xff\xd8\xff"
BLANKS = " \t"
NUMBER = re.compile(r"-?[0-9]+")
"""How a label is written that is no name."""
MOST_DIGITS = 18
"""Of a label; Python refuses to make numbers of thousands."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".pgm", ".tga", ".tif", ".tiff", ".webp")
"""Ends of names, in any case, of the files of a folder that are taken for images."""
COLUMNS = (("path", "image", "file", "filename", "image_path"), ("label", "class", "class_name", "target"))
"""What a table may call the columns of the path and of the label; without such a line they are the first two."""
_NAMED = re.compile(rf"(?P<path>.*({'|'.join(map(re.escape, SUFFIXES))}))( *[\t,] *| +)(?P<label>.*)", re.IGNORECASE)
SHOWN, SHOWN_DIGITS = 200, 40
"""Characters of a line, and of a label, that an error shows."""


@dataclass(frozen=True)
class ListedImage:
    """One line of a list file: an image and its class, or the numbers of its classes where it may have several."""

    path: str
    label: int | tuple[int, ...]
    file: Path
    line: int

    @property
    def classes(self) -> tuple[int, ...]:
        """All of its classes."""
        return (self.label,) if isinstance(self.label, int) else self.label

    @property
    def where(self) -> str:
        """List file and line, for errors; of an image that no list names its folder."""
        return f"{self.file}, line {self.line}" if self.line else str(self.file)

    @property
    def place(self) -> str:
        """The same without the folders above."""
        return f"{self.file.name}, line {self.line}" if self.line else self.file.name


def read_list(file: Path, num_classes: int, class_names: Sequence[str] = ()) -> list[ListedImage]:
    """Read a list file. The label follows the last space, so paths may hold spaces; blank lines may end the file.

    Blanks and tabs after a label mean nothing. Where classes have names, a label may be one of these, and may follow a
    tab or a comma after the ending of an image; a ``.csv`` or ``.tsv`` may name its columns, see `COLUMNS`.

    Raises:
        DataError: naming file and line, if the file is missing, empty or no text, a line is malformed, or a label is
            not in 0 .. num_classes - 1, nor a name.
    """
    indices = {name: index for index, name in enumerate(class_names)}
    entries = []
    for number, line, path, label in _rows(file):
        is_number = NUMBER.fullmatch(label) is not None
        if not path.strip() or "\0" in path or not (is_number or indices):
            raise DataError(
                f"{file}, line {number}: expected 'relative/path label', the label a whole number, got {_short(line)}"
            )
        if not is_number and label not in indices:
            named = f"{_short(label)} is no class{suggest(label, indices)}"
            raise DataError(f"{file}, line {number}: {named}")
        digits = label.lstrip("0") or "0"
        if is_number and (label[0] == "-" or len(digits) > MOST_DIGITS or int(digits) >= num_classes):
            raise DataError(
                f"{file}, line {number}: label {label[:SHOWN_DIGITS]} is outside of 0..{num_classes - 1} "
                f"({num_classes} classes)"
            )
        entries.append(ListedImage(path, int(digits) if is_number else indices[label], file, number))
    return entries


def labels_in(file: Path) -> set[str]:
    """The labels of a list file, as they are written; DataError as `read_list`, for a file that cannot be read."""
    return {label for _, _, _, label in _rows(file)}


def _rows(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Number, line, path and label of every line of a list file."""
    lines = lines_of(file)
    if file.suffix.lower() in (".csv", ".tsv"):
        yield from _table(file, lines)
        return
    for number, line in enumerate(lines, start=1):
        path, _, label = line.rstrip(BLANKS).rpartition(" ")
        if not NUMBER.fullmatch(label) and (match := _NAMED.fullmatch(line.rstrip(BLANKS))):
            path, label = match["path"], match["label"]
        yield number, line, path, label


def _table(file: Path, lines: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    reader = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",", skipinitialspace=True)
    columns = [0, 1]
    for row in reader:
        number, line = reader.line_num, lines[reader.line_num - 1]
        names = [cell.strip().lower() for cell in row]
        found = [next((names.index(name) for name in kind if name in names), None) for kind in COLUMNS]
        if number == 1 and None not in found:
            columns = [index for index in found if index is not None]
        elif len(row) <= max(columns):
            raise DataError(
                f"{file}, line {number}: {len(row)} columns, got {_short(line)}; it needs a path and a label"
            )
        else:
            yield number, line, row[columns[0]], row[columns[1]].strip()


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, without blank ones at its end; DataError if it is missing, empty or no text."""
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
    return lines


def _short(text: str) -> str:
    """What a file holds, for an error: quoted, and not longer than anybody reads."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def locate(entries: Sequence[ListedImage], folder: Path, root: Path) -> list[tuple[Path, os.stat_result]]:
    """Find the images of list entries, after every symbolic link: path and state of each file.

    Paths are relative to `folder`, which may itself be a link that leads elsewhere; none may leave it or the tree of
    `root`. DataError, naming list file and line, if an image is missing or lies outside.
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
    """Content hashes of the images of list entries; what is unchanged is not read again; DataError as ``locate``."""
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
