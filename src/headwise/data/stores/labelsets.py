"""Tables in which an image has any number of classes. Standard library only.

Either every class has a column of 0 and 1, named in the first line, or one column names the classes of an image, with
``|`` or ``;`` between them. A first line that names the column of the path (`COLUMNS`) says which columns there are;
without one the first two are path and classes. An image without a class has an empty cell, or 0 everywhere.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.data.stores.listfiles import COLUMNS, MOST_DIGITS, NUMBER, ListedImage, lines_of
from headwise.errors import DataError, suggest

LABELS = (*COLUMNS[1], "labels", "classes", "tags", "targets")
"""What a table may call the column that names the classes."""
LEAVE_OUT = "; names are found where dataset.num_classes is left out, or given in dataset.class_names"
BETWEEN = re.compile(r"[|;]")


@dataclass(frozen=True)
class LabelTable:
    """What a table says, before anybody knows the task's classes.

    Attributes:
        file: of the table.
        columns: the classes, where each has a column; else none.
        rows: line, path and names of the classes of each image.
    """

    file: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, str, tuple[str, ...]], ...]

    @property
    def names(self) -> list[str]:
        """The classes: columns in their order, else the names, sorted."""
        return list(self.columns) or sorted({name for _, _, names in self.rows for name in names})


def read_table(file: Path) -> LabelTable:
    """Read a ``.csv`` or ``.tsv``.

    Raises:
        DataError: for another ending; naming file and line, for a cell that is neither 0 nor 1, a short or empty row.
    """
    if file.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(f"{file}: several labels an image (dataset.multi_label) come from .csv, .tsv or Parquet files")
    lines = lines_of(file)
    reader = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",", skipinitialspace=True)
    head: list[str] | None = None
    rows = []
    for cells in ([cell.strip() for cell in row] for row in reader):
        if reader.line_num == 1 and any(cell.lower() in COLUMNS[0] for cell in cells):
            head = cells
            _check_head(file, head)
            continue
        where = f"{file}, line {reader.line_num}"
        if len(cells) < 2 or len(cells) < len(head or ()) or not _path(cells, head):
            raise DataError(f"{where}: {len(cells)} columns; it needs a path and {len(head or (0, 0)) - 1} more")
        if len(cells) > len(head or (0, 0)):
            raise DataError(f"{where}: {len(cells)} columns for {len(head or (0, 0))}; the first line names them all")
        values = dict(zip(head, cells, strict=True)) if head else {"path": cells[0], "labels": cells[1]}
        rows.append((reader.line_num, _path(cells, head), named(values, where)))
    columns = class_columns(head or ("path", "labels"))
    return LabelTable(file, tuple(columns), tuple(rows))


def _check_head(file: Path, head: Sequence[str]) -> None:
    """Refuse a first line that names a column twice, or none of classes."""
    twice = [name for name in head if head.count(name) > 1]
    if twice or "" in head or len(head) < 2:
        wrong = (
            f"names {twice[0]!r} twice" if twice else "needs a name for each column, that of the path and of classes"
        )
        raise DataError(f"{file}, line 1: the first line {wrong}")


def _path(cells: Sequence[str], head: Sequence[str] | None) -> str:
    place = next((i for i, name in enumerate(head) if name.lower() in COLUMNS[0]), 0) if head else 0
    return cells[place]


def class_columns(head: Sequence[str]) -> list[str]:
    """The columns that are classes; none where one column names the classes."""
    if any(name.lower() in LABELS for name in head):
        return []
    return [name for name in head if name.lower() not in COLUMNS[0]]


def named(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of the classes of a row, of its columns: text, numbers, or a sequence of names or numbers.

    Raises:
        DataError: naming `where` it stands, for what is neither 0 nor 1 in the column of a class, and for a list that
            repeats a class or holds what is neither text nor a whole number.
    """
    columns = class_columns(list(values))
    if not columns:
        cell = next(value for name, value in values.items() if name.lower() in LABELS)
        if isinstance(cell, str):
            return _listed([text for item in BETWEEN.split(cell) if (text := item.strip())], where)
        return _listed([] if cell is None else cell if isinstance(cell, list) else [cell], where)
    for name in columns:
        if str(values[name]) not in ("0", "1", "True", "False"):
            raise DataError(
                f"{where}: column {name[:80]!r} holds {str(values[name])[:40]!r}; that of a class holds 0 or 1, and "
                f"one that names classes is called {', '.join(LABELS)}"
            )
    return tuple(name for name in columns if str(values[name]) in ("1", "True"))


def _listed(items: Sequence[Any], where: str) -> tuple[str, ...]:
    """Classes of a list, names or numbers; 0 and 1 for each class would be taken for classes 0 and 1."""
    texts = tuple(str(item).strip() for item in items)
    if len(set(texts)) < len(texts) or not all(type(item) in (str, int) for item in items):
        raise DataError(
            f"{where}: labels are {str(items)[:80]}; a list has names or numbers of classes, each once; 0 and 1 for "
            "each class stand in one column a class"
        )
    return tuple(filter(None, texts))


def classes_of(tables: Iterable[LabelTable]) -> tuple[list[str], int]:
    """Names of the classes in tables, the first one's columns in their order; or none and how many numbers there are.

    Raises:
        DataError: if some classes are numbers and others names.
    """
    found = list(tables)
    if found[0].columns:
        return list(found[0].columns), 0
    return names_or_count({name for table in found for name in table.names}, found[0].file)


def names_or_count(names: Set[str], where: object) -> tuple[list[str], int]:
    """Names of classes, sorted, or none and how many numbers there are.

    Raises:
        DataError: naming `where`, for a mixture.
    """
    numbers = [name for name in names if NUMBER.fullmatch(name)]
    if not numbers:
        return sorted(names), 0
    if len(numbers) < len(names):
        raise DataError(f"{where}: some classes are numbers and others names; dataset.class_names says which")
    return [], 1 + max(int(name[-MOST_DIGITS:]) for name in numbers)


def numbered(names: Sequence[str], num_classes: int, indices: Mapping[str, int], where: str) -> tuple[int, ...]:
    """The classes of an image as numbers below K, ascending; a number is taken where it is the name of no class.

    `indices` are the numbers of the classes that have a name.

    Raises:
        DataError: naming `where` it stands, what is no class, and the nearest that is one.
    """
    numbers = set()
    for name in names:
        digits = name.lstrip("0") or "0"
        if name in indices:
            numbers.add(indices[name])
        elif NUMBER.fullmatch(name) and name[0] != "-" and len(digits) <= MOST_DIGITS and int(digits) < num_classes:
            numbers.add(int(digits))
        else:
            allowed = suggest(name, indices) if indices else f"; classes are 0..{num_classes - 1}"
            if not indices and not NUMBER.fullmatch(name):
                allowed += LEAVE_OUT
            raise DataError(f"{where}: {name[:80]!r} is no class{allowed}")
    return tuple(sorted(numbers))


def read_sets(file: Path, num_classes: int, class_names: Sequence[str] = ()) -> list[ListedImage]:
    """Read a table of images with several labels.

    Raises:
        DataError: as `read_table`, or for other classes than the task's.
    """
    table, indices = read_table(file), {name: index for index, name in enumerate(class_names)}
    check_columns(table.columns, class_names, f"{file}, line 1")
    return [
        ListedImage(path, numbered(names, num_classes, indices, f"{file}, line {line}"), file, line)
        for line, path, names in table.rows
    ]


def check_columns(columns: Sequence[str], class_names: Sequence[str], where: str) -> None:
    """Check the columns of a table.

    Raises:
        DataError: if there is none for a class of the task, or one for another; names it.
    """
    if not columns or set(columns) == set(class_names):
        return
    for name in columns:
        if name not in class_names:
            allowed = suggest(name, class_names) if class_names else LEAVE_OUT
            raise DataError(f"{where}: column {name[:80]!r} is no class{allowed}")
    lacking = next(name for name in class_names if name not in columns)
    raise DataError(f"{where}: there is no column for class {lacking!r}")
