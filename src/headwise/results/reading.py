"""Finished runs by their name: what every script that reads results shares. Standard library and yaml only."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from headwise.errors import ConfigError, suggest
from headwise.results.records import OWN_FOLDERS, Result
from headwise.results.store import ResultError, ResultStore
from headwise.storage import plain

_CONF = Path("conf") / "experiment"


@dataclass
class ReadResults:
    """Results, and the records that could not be read.

    Attributes:
        name: of the runs; None for all below the root.
        results: in the order of their paths.
        damaged: paths below the root; these count as missing.
    """

    name: str | None
    results: list[Result] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What a table must say of damaged records."""
        return [f"{of_damaged(self.damaged)}."] if self.damaged else []


def read(root: Path, given: str | None = None, repo: Path | None = None) -> ReadResults:
    """Read the finished runs of an experiment, or of all.

    Args:
        root: of all results.
        given: name of the runs, or of an experiment's file; None reads all.
        repo: folder that holds ``conf``, to know experiments that have not been run.
    Raises:
        ConfigError: if there is none: the name does not exist (lists those that do, and the nearest), or it exists and
            nothing of it is finished (says what to run).
    """
    if plain.is_blocked(root):
        raise ConfigError(f"no finished run under {root}: it is no folder; is --root right?")
    names = runs(root)
    experiments: dict[str, str] = {}
    if given is not None and given not in names:
        experiments = _experiments(repo)
    name = None if given is None else experiments.get(given, given)
    errors: list[ResultError] = []
    records = ReadResults(name, list(ResultStore(root, on_bad=errors.append).all(name)))
    records.damaged = [below(error.path, root) for error in errors]
    if records.results:
        return records
    damaged = f"; {' '.join(records.notes)}" if errors else ""
    if given is None:
        raise ConfigError(f"no finished run under {root}{damaged or '; is --root right?'}")
    experiments = experiments or _experiments(repo)
    if given in experiments or name in names:
        command = f"python train.py experiment={given}" if given in experiments else "the command that began it"
        raise ConfigError(f"no finished run of {given!r} under {root}{damaged}; run {command}")
    raise ConfigError(
        f"no finished run of {given!r} under {root}: no such name{suggest(given, {*names, *experiments})}"
    )


def read_result(folder: Path) -> Result:
    """Read the record of a finished run.

    Raises:
        ConfigError: if there is no finished run; lists those below. ResultError: if its record is damaged.
    """
    if plain.is_blocked(folder):
        raise ConfigError(f"{folder} is no folder; give the one of a finished run, which holds result.json")
    try:
        return Result.read(folder / "result.json")
    except (FileNotFoundError, NotADirectoryError):
        below = sorted(str(file.parent) for file in folder.glob("**/result.json"))[:5] if folder.is_dir() else []
        hint = f"; did you mean {' or '.join(below)}?" if below else ""
        raise ConfigError(f"no finished run in {folder}: it holds no result.json{hint}") from None


def others(root: Path, names: Iterable[str | None]) -> Callable[[], list[Result]]:
    """Return what reads, once and when it is called, the finished runs of all other names below a root.

    Args:
        root: of all results.
        names: that have been read; None says that all have.
    """
    taken = set(names)

    @functools.cache
    def rest() -> list[Result]:
        if None in taken:
            return []
        store = ResultStore(root, on_bad=lambda error: None)
        return [result for name in sorted(runs(root) - taken) for result in store.all(name)]

    return rest


def stamps(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every record below a root: they change when anything is to be read again."""
    found = {}
    for name in runs(root):
        for path in (root / name).glob("*/*/*/seed-*/result.json"):
            with contextlib.suppress(OSError):  # it was replaced or removed this very moment
                status = path.stat()
                found[path] = (status.st_size, status.st_mtime_ns)
    return found


def runs(root: Path) -> set[str]:
    """Names of runs below a root, finished or not."""
    folders = root.iterdir() if root.is_dir() else ()
    return {folder.name for folder in folders if folder.is_dir() and folder.name not in OWN_FOLDERS}


def _experiments(repo: Path | None) -> dict[str, str]:
    """Experiment -> name of its runs."""
    files = sorted((repo / _CONF).glob("*.yaml")) if repo else []
    return {file.stem: _name(file) for file in files}


def _name(file: Path) -> str:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return file.stem
    return str(content.get("name", file.stem)) if isinstance(content, dict) else file.stem


def of_damaged(paths: Sequence[str]) -> str:
    """Say of damaged records, at least one, that they count as missing; the first five are named."""
    shown = ", ".join(paths[:5]) + (" and more" if len(paths) > 5 else "")
    return f"{len(paths)} damaged record(s) count as missing: {shown}"


def below(path: Path, root: Path) -> str:
    """A path as it is seen from the root."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
