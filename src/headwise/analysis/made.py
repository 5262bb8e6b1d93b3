"""What an analysis is: tables, pictures, sentences, and where they come from; on disk as CSV, PNG, SVG and a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from matplotlib.figure import Figure

from headwise import __version__
from headwise.analysis.style import DPI, styled
from headwise.commands.written import writing
from headwise.comparison.cells import bullets, in_csv, in_markdown
from headwise.errors import ConfigError
from headwise.results.provenance import git_state, versions
from headwise.storage import atomic

if TYPE_CHECKING:
    from headwise.analysis.kinds import Recorded
    from headwise.artifacts.saved import SavedRun

SUMMARY = "README.md"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PICTURES: dict[str, dict[str, Any]] = {
    "png": {"dpi": DPI, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}


@dataclass(frozen=True)
class Analysis:
    """What came out of one kind of analysis.

    Attributes:
        tables: the numbers by name of a file, unrounded.
        figures: the pictures by name of a file.
        sentences: what is to be seen, the answer first; every claim with its null.
        sources: the runs and what it was told, one line each; filled in by `headwise.analysis.kinds.analyse`.
    """

    kind: str
    title: str
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]
    sentences: list[str]
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in (*self.tables, *self.figures):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"a table or figure of an analysis is named by small letters and digits, got {name!r}"
                )

    def of(self, runs: Sequence[SavedRun | Recorded], told: Mapping[str, Any]) -> Self:
        """The same with its sources: the runs, and the options that it read."""
        return replace(self, sources=_sources(runs, told))

    def files(self, folder: str | Path) -> list[Path]:
        """Everything that `write` writes."""
        pictures = (f"{name}.{suffix}" for name in self.figures for suffix in _PICTURES)
        return [Path(folder, name) for name in (SUMMARY, *(f"{name}.csv" for name in self.tables), *pictures)]

    def write(self, folder: str | Path, force: bool = False) -> list[Path]:
        """Write a CSV of each table, a PNG and an SVG of each figure, and README.md; returns the files.

        Args:
            folder: made if it is missing.
            force: replace files, even those that headwise did not write.

        Raises:
            ConfigError: for a file that is somebody else's. StorageError: for what cannot be written.
        """
        folder, files = Path(folder), self.files(folder)
        with writing(*files, force=force), styled():
            for name, table in self.tables.items():
                atomic.write_text(folder / f"{name}.csv", table.map(in_csv).to_csv(index=False, lineterminator="\n"))
            for name, figure in self.figures.items():
                for suffix, options in _PICTURES.items():
                    with atomic.replacing(folder / f"{name}.{suffix}") as part:
                        figure.savefig(part, **options)
            atomic.write_text(folder / SUMMARY, self.text())
        return files

    def text(self) -> str:
        """The page: title, sentences, pictures, tables, sources."""
        lines = [f"# {in_markdown(self.title)}", "", bullets(self.sentences), ""]
        for name in self.figures:
            lines += [f"![{name.replace('_', ' ').replace('-', ' ')}]({name}.png)", ""]
        tables = ", ".join(f"[{name}.csv]({name}.csv) ({len(table)} rows)" for name, table in self.tables.items())
        lines += [f"Numbers: {tables}.", ""] if tables else []
        return "\n".join([*lines, "## Sources", "", bullets(self.sources)]).rstrip() + "\n"


def check_place(folder: Path, force: bool) -> None:
    """Refuse, before any work, a folder where the page cannot be written, or that holds others' pictures or tables."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; --out names the one that the analysis is written to")
    kinds = (".csv", *(f".{suffix}" for suffix in _PICTURES))
    there = sorted(file for file in folder.glob("*") if file.suffix in kinds) if folder.is_dir() else []
    with writing(folder / SUMMARY, *there, force=force):
        pass


def _sources(runs: Sequence[SavedRun | Recorded], told: Mapping[str, Any]) -> list[str]:
    """Runs by name and hash, what the analysis was told, and the code."""
    lines = []
    for run in runs:
        key, result = run.result.key, run.result
        labels = f"; {', '.join(result.labels)}" if result.labels else ""
        lines.append(f"run `{key.path('').as_posix()}`, {result.fingerprint[:12]}, {len(result.phases)} phases{labels}")
    state = git_state(Path(__file__).parent) or {}
    commit = (
        f", commit {str(state.get('commit', ''))[:12]}{' + changes' if state.get('dirty') else ''}" if state else ""
    )
    known = ", ".join(f"{name} {number}" for name, number in versions(("torch", "numpy", "scipy")).items())
    said = [f"{name} {told[name]}" for name in ("seed", "draws", "split", "images", "greedy") if name in told]
    return [
        *lines,
        "; ".join([f"{len(runs)} run{'s' if len(runs) > 1 else ''}", *([", ".join(said)] if said else [])]),
        f"headwise {__version__}{commit}; {known}",
    ]
