"""What became of each run that was asked for: one small file per request, which many processes may write and read.

``<root>/ledger/<request>.json`` says where the run lies, how it was asked for, and why it failed if it did. Whether it
is finished or being computed is never written here: the result and the claim in the run's folder say so. Standard
library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.errors import ConfigError
from headwise.results.records import ResultError, RunKey, load_json
from headwise.results.store import Finished, ResultStore
from headwise.storage import atomic, claims, plain

STATES = ("done", "running", "failed", "missing")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that was asked for.

    Attributes:
        overrides: that ask for it.
        path: of its folder below the root; None if it failed before it had one.
        failure: why the last attempt failed, one line; None if it did not.
        trace: traceback of a failure before there was a folder for it.
    """

    overrides: tuple[str, ...]
    path: str | None = None
    failure: str | None = None
    trace: str | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """How it stands with a run.

    Attributes:
        name: one of `STATES`.
        entry: what the ledger knows; None if no process has begun the run.
        finished: the line of the index, if it is done.
        holder: who computes it, or who died over it: host, pid, since.
        why: it failed, one line.
    """

    name: str
    entry: Entry | None = None
    finished: Finished | None = None
    holder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    why: str = ""


def _run_folder(value: Any, where: str) -> None:
    """The path of a run below the root, and nothing else: what lies there is looked at."""
    plain.text(value, where)
    try:
        inside = RunKey.of(Path(value)).path("") == Path(value)
    except ConfigError:
        inside = False
    if not inside:
        raise plain.Misfit(f"{where} is no run's folder: {value[:80]!r}")


_ENTRY = plain.fields(
    {"overrides": plain.each(plain.text)},
    {"path": plain.maybe(_run_folder), "failure": plain.maybe(plain.text), "trace": plain.maybe(plain.text)},
)


class Ledger:
    """The requests under one root."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def write(self, request: str, entry: Entry) -> None:
        """Note how it stands, in place of what was noted before."""
        atomic.write_json(self.path(request), dataclasses.asdict(entry))

    def read(self, request: str) -> Entry | None:
        """What is noted of a request; None if there is nothing readable."""
        with contextlib.suppress(FileNotFoundError, ResultError, plain.Misfit):
            raw = load_json(self.path(request))
            _ENTRY(raw, "")
            if raw.keys() <= {f.name for f in dataclasses.fields(Entry)}:
                return Entry(**{**raw, "overrides": tuple(raw["overrides"])})
        return None

    def entries(self) -> dict[str, Entry]:
        """Everything that is noted, by request."""
        notes = {file.stem: self.read(file.stem) for file in sorted((self.root / "ledger").glob("*.json"))}
        return {request: entry for request, entry in notes.items() if entry is not None}

    def states(self, requests: Sequence[str], finished: Mapping[str, Finished] | None = None) -> dict[str, State]:
        """How it stands with each of `requests`; the results decide, then the claims, then what is noted.

        What counts as finished may be given; else it is what the index says.
        """
        finished = finished_requests(self.root) if finished is None else finished
        return {request: self._state(request, finished) for request in requests}

    def _state(self, request: str, finished: Mapping[str, Finished]) -> State:
        if request in finished:
            return State(name="done", finished=finished[request])
        entry = self.read(request)
        return State(name="missing") if entry is None else self.state_of(entry)

    def state_of(self, entry: Entry) -> State:
        """How it stands with a run that has no result."""
        standing, holder = claims.standing(self.root / entry.path) if entry.path else ("free", {})
        if standing == "held":
            return State(name="running", entry=entry, holder=holder)
        if entry.failure is not None:
            return State(name="failed", entry=entry, why=entry.failure)
        if standing == "dead":
            why = f"its worker died ({claims.describe(holder)})"
            return State(name="failed", entry=entry, holder=holder, why=why)
        return State(name="missing", entry=entry)

    def path(self, request: str) -> Path:
        """The file of a request; it need not exist."""
        return self.root / "ledger" / f"{request}.json"


def finished_requests(root: str | Path) -> dict[str, Finished]:
    """Finished runs by what asked for them."""
    return {line.request: line for line in ResultStore(root).finished().values() if line.request}


def folder_of(root: Path, key: RunKey) -> str:
    """The path of a run below the root, as it is noted."""
    return key.path(root).relative_to(root).as_posix()
