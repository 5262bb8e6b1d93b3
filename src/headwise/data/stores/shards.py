"""Parquet files and folders of ``save_to_disk`` under a root: which part each belongs to, and their rows. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.data.notices import say_once
from headwise.data.stores.classfolders import TEST, TRAIN, VAL
from headwise.errors import DataError
from headwise.storage.hashes import stamp_of
from headwise.storage.plain import Misfit, read_json

PARTS = {"train": TRAIN, "training": TRAIN, "test": TEST, "validation": VAL, "valid": VAL, "val": VAL, "dev": VAL}
_PART = re.compile(rf"(?:^|[._ -])({'|'.join(sorted(PARTS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
ROWS = 256
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file, or one folder that ``save_to_disk`` wrote, whose saved dataset is then its `table`.

    `features` say what its columns hold, by name, as ``datasets`` does; `count` is of its rows.
    """

    file: Path
    features: Mapping[str, Any]
    count: int
    table: Any = None

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row, plain values, images not decoded.

        Raises:
            DataError: if the file is damaged.
        """
        try:
            for batch in self._batches(columns):
                yield from batch.to_pylist()
        except Exception as error:  # pyarrow has many kinds for files that are damaged
            raise DataError(f"{self.file}: cannot be read ({str(error)[:200]})") from error

    def _batches(self, columns: Sequence[str]) -> Iterator[Any]:
        if self.table is not None:
            yield from self.table.select_columns(list(columns)).with_format("arrow").iter(ROWS)
            return
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.file) as opened:
            yield from opened.iter_batches(ROWS, columns=list(columns))

    @property
    def stamp(self) -> list[int]:
        """What changes when one of its files does, see `headwise.storage.hashes.stamp_of`.

        Raises:
            DataError: if there is none of them.
        """
        try:
            files = [self.file] if self.table is None else sorted(self.file.iterdir())
            states = [stamp_of(file.stat()) for file in files]
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read ({error.strerror})") from error
        if not states:
            raise DataError(f"{self.file}: cannot be read (it is empty)")
        # of a folder as many numbers as of a file: no file can change without a later time of its state
        sizes, *times = zip(*states, strict=True)
        return [sum(sizes), *map(max, times)]


def shards_in(root: Path) -> dict[str, list[Shard]]:
    """What lies under a root, by part; what has no rows is left out.

    Raises:
        DataError: if there is nothing to read, something damaged, or a link that leads out of the root.
    """
    if (root / "dataset_dict.json").is_file():
        names = _json(root / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(n, str) and re.fullmatch(r"[\w.-]+", n) for n in names):
            raise DataError(f"{root / 'dataset_dict.json'}: its splits are no list of names")
        found: dict[str, list[Shard]] = {}
        for name in names:
            if name not in PARTS:
                say_once(f"{root}: split {name!r} is left out; taken are {', '.join(PARTS)}")
                continue
            found.setdefault(PARTS[name], []).append(_saved(_inside(root / name, root)))
        return _some(found, root)
    if (root / "state.json").is_file():
        return {"": [_saved(root)]}
    found = {}
    for file in sorted(root.rglob("*.parquet")):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        # the file's own name first: train/validation-0.parquet is for validation
        match = next((m for part in reversed(file.relative_to(root).parts) if (m := _PART.search(part))), None)
        part = PARTS[match[1].lower()] if match else ""
        found.setdefault(part, []).append(_parquet(_inside(file, root)))
    if "" in found and len(found) > 1:
        raise DataError(
            f"{found[''][0].file}: its name says neither train, validation nor test, and those of others do"
        )
    return _some(found, root)


def _some(found: dict[str, list[Shard]], root: Path) -> dict[str, list[Shard]]:
    if not found:
        raise DataError(f"{str(root)!r} holds no .parquet file and nothing that datasets' save_to_disk wrote")
    filled = {part: some for part, shards in found.items() if (some := [shard for shard in shards if shard.count])}
    if not filled:
        raise DataError(f"{str(root)!r} holds no row, in {', '.join(part or 'its files' for part in found)}")
    return filled


def _inside(path: Path, root: Path) -> Path:
    """A path, unless a link leads it out of the root."""
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise DataError(f"{path} leaves the data root {str(root)!r}")
    return path


def _json(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, Misfit) as error:
        raise DataError(f"{file}: is damaged ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: is damaged (no object)")
    return value


def _saved(folder: Path) -> Shard:
    """A folder of ``save_to_disk``; the files that it names must lie in it."""
    state = _json(folder / "state.json")
    files = state.get("_data_files")
    if not isinstance(files, list) or not files:
        raise DataError(f"{folder / 'state.json'}: names no files")
    for one in files:
        name = one.get("filename") if isinstance(one, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{folder / 'state.json'}: {str(name)[:80]!r} is no file of this folder")
        _inside(folder / name, Path(os.path.realpath(folder)))
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the library raises for files that are not its own
        raise DataError(f"{folder}: cannot be read ({str(error)[:200]})") from error
    return Shard(folder, dict(table.features), len(table), table)


def _parquet(file: Path) -> Shard:
    import datasets
    import pyarrow.parquet as pq

    try:
        held = pq.read_metadata(file)
        return Shard(file, dict(datasets.Features.from_arrow_schema(held.schema.to_arrow_schema())), held.num_rows)
    except Exception as error:  # whatever the library raises for a file that is none
        raise DataError(f"{file}: cannot be read as Parquet ({str(error)[:200]})") from error


def class_names(kind: Any) -> list[str] | None:
    """Names of a ClassLabel, or of a list of them; None for any other column."""
    names = getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)
    return list(names) if names else None
