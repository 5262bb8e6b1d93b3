"""The record of runs, and the store of trained phases that runs share.

``<root>/<name>/<method>/<dataset>/<variant>/seed-<n>/result.json``   one finished run; the truth
``<root>/index.jsonl``                                                  a cache of the above, rebuilt at will
``<root>/phases/<fingerprint>/phase.json``                              one finished phase, beside its tensors

A file exists only when it is complete. Standard library only: a result must be readable when torch is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.errors import CheckpointError, ConfigError, HeadwiseError, ResultConflict
from headwise.results.fingerprint import canonical, differences, few, fingerprint
from headwise.results.records import OWN_FOLDERS, PhaseResult, Result, ResultError, RunKey, load_json
from headwise.storage import atomic, plain
from headwise.storage.claims import Claim
from headwise.storage.hashes import sha256_of

_HEX = re.compile(r"[0-9a-f]{8,64}")
_SHOWN = 12
_LINE = plain.fields(
    {"path": plain.text, "stamp": plain.each(plain.whole), "fingerprint": plain.text, "request": plain.text}
)
_OPENING = '{"path": "'
"""How a line of the index begins, also one that was torn."""
_log = logging.getLogger(__name__)


def _report(error: ResultError) -> None:
    _log.warning("%s", error)


@dataclass(frozen=True)
class Finished:
    """A line of the index."""

    key: RunKey
    fingerprint: str
    request: str


class ResultStore:
    """All results under one root.

    Args:
        root: need not exist.
        on_bad: told of each record that cannot be read, which then counts as missing; logs a warning by default.
        indexed: whether the index is written; without it a file of its name is left as it is, as one that is not of
            headwise always is.
    """

    def __init__(
        self, root: str | Path, on_bad: Callable[[ResultError], None] = _report, *, indexed: bool = True
    ) -> None:
        self.root, self.on_bad, self.indexed = Path(root), on_bad, indexed
        self._is_ours: bool | None = None

    def get(self, key: RunKey, identity: Mapping[str, Any]) -> Result | None:
        """Return the finished run of this configuration, None if there is none.

        Raises:
            ResultConflict: if the folder holds another configuration; names the keys that differ.
        """
        path = key.path(self.root) / "result.json"
        try:
            stored = Result.read(path)
        except FileNotFoundError:
            return None
        except ResultError as error:
            self.on_bad(error)
            return None
        if stored.fingerprint != fingerprint(identity):
            raise ResultConflict(_conflict(path, stored.identity, identity))
        return stored

    def place(self, key: RunKey, identity: Mapping[str, Any]) -> RunKey:
        """Where a run belongs: `key`, or beside a run of the same configuration under another variant.

        One configuration may have been asked for in other words, or named by other rules: a finished run is found under
        its name, and further seeds join those that are there.
        """
        folder = key.path(self.root).parent.parent
        variants = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        others = sorted(variants - {key.variant}, key=lambda variant: (len(variant), variant))
        joined: RunKey | None = None
        for variant in [key.variant, *others]:
            kin = list(folder.glob(f"{glob.escape(variant)}/seed-*/result.json"))
            own = folder / variant / f"seed-{key.seed}" / "result.json"
            # seeds of a folder share one configuration: where this seed has not run, the first of them speaks for all
            for path in [own] if own in kin else sorted(kin)[:1]:
                with contextlib.suppress(FileNotFoundError, HeadwiseError):
                    stored = Result.read(path)
                    if fingerprint({**stored.identity, "seed": key.seed}) != fingerprint(identity):
                        continue
                    joined = joined or dataclasses.replace(key, variant=variant)
                    if path == own:
                        return dataclasses.replace(key, variant=variant)
        return joined or key

    def put(self, key: RunKey, result: Result) -> Path:
        """Write a result, last of all a run writes, and return its file.

        Raises:
            ResultConflict: if the folder holds a result of another configuration. ConfigError: if ``key`` is not the
                result's own, or a value has no JSON form; then nothing is written.
        """
        if key != result.key:
            raise ConfigError(f"result of {result.key} may not be stored under {key}")
        # asked for its refusal: another configuration may have come to lie here since the run began
        self.get(key, result.identity)
        path = key.path(self.root) / "result.json"
        atomic.write_json(path, canonical(result.to_json(), "result", merge=False))
        self._append(path, result, result.request)
        return path

    def recognise(self, result: Result, request: str) -> None:
        """Note in the index that `request` asks for this finished run as well; the last one noted is found."""
        path = result.key.path(self.root) / "result.json"
        with contextlib.suppress(FileNotFoundError):
            if self._index().get(self._relative(path), {}).get("request") != request:
                self._append(path, result, request)

    def all(self, name: str | None = None) -> Iterator[Result]:
        """Yield every readable result in the order of their paths, of one run name if given.

        A folder of another name than its result says (a copy, a rename) gives the result its present name.
        """
        return self._readable(self._paths(name))

    def alike(self, key: RunKey) -> Iterator[Result]:
        """Yield every readable result of the same task and seed, whatever its name, method and variant."""
        return self._readable(self._paths(None, f"*/{key.dataset}/*/seed-{key.seed}"))

    def repeats(self, key: RunKey) -> Iterator[Result]:
        """Yield every readable result of a run's row: the same names, whatever the seed."""
        return self._readable(sorted(key.path(self.root).parent.glob("seed-*/result.json")))

    def _readable(self, paths: Iterable[Path]) -> Iterator[Result]:
        return (result for path in paths if (result := self._read(path)) is not None)

    def finished(self) -> dict[RunKey, Finished]:
        """List finished runs without reading those that the index knows, keyed by where they lie."""
        index = self._index()
        runs, fresh = {}, 0
        for path in self._paths():
            with contextlib.suppress(FileNotFoundError, ConfigError):
                key, line = RunKey.of(path.parent), index.get(self._relative(path), {})
                if line and line["stamp"] == _stamp(path):
                    runs[key] = Finished(key, line["fingerprint"], line["request"])
                elif (result := self._read(path)) is not None:
                    runs[key] = Finished(key, result.fingerprint, result.request)
                    self._append(path, result, result.request)
                    fresh += 1
        # more than half of the lines speak of runs that were made again or are gone
        if len(index) + fresh > 2 * len(runs) + 100:
            with contextlib.suppress(OSError):  # of others, perhaps: it is a cache
                self.rebuild()
        return runs

    def rebuild(self) -> None:
        """Write the index anew from the results; what others append meanwhile is found again by `finished`.

        A file of its name that somebody else has written stays as it is.
        """
        if not self._owns_index:
            return
        index = self._index()
        lines = []
        for path in self._paths():
            if (result := self._read(path)) is not None:
                line = index.get(self._relative(path), {})
                same = bool(line) and line["stamp"] == _stamp(path)
                lines.append(self._line(path, result, line["request"] if same else result.request))
        atomic.write_text(self.root / "index.jsonl", "".join(lines))

    def _paths(self, name: str | None = None, pattern: str = "*/*/*/seed-*") -> list[Path]:
        folders = self.root.iterdir() if self.root.is_dir() else ()
        chosen = [folder for folder in folders if folder.name not in OWN_FOLDERS and name in (None, folder.name)]
        paths = (place / "result.json" for folder in chosen for place in folder.glob(pattern))
        return sorted(path for path in paths if os.path.lexists(path))  # a link that leads nowhere is told of, too

    def _read(self, path: Path) -> Result | None:
        try:
            result, place = Result.read(path), RunKey.of(path.parent)
            if dataclasses.replace(result.key, name=place.name) != place:
                raise ResultError(path, f"it says it is {result.key}, which is not where it lies")
            return dataclasses.replace(result, key=place)
        except FileNotFoundError:
            return None
        except ResultError as error:
            self.on_bad(error)
        except ConfigError as error:
            self.on_bad(ResultError(path, str(error)))
        return None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _line(self, path: Path, result: Result, request: str) -> str:
        line = {"path": self._relative(path), "stamp": _stamp(path)}
        return json.dumps({**line, "fingerprint": result.fingerprint, "request": request}) + "\n"

    def _append(self, path: Path, result: Result, request: str) -> None:
        """Add one line by one O_APPEND write; a blank line before it ends any line that another writer left torn."""
        if not (self.indexed and self._owns_index):
            return
        with contextlib.suppress(OSError):
            descriptor = os.open(self.root / "index.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, f"\n{self._line(path, result, request)}".encode())
            finally:
                os.close(descriptor)

    def _index(self) -> dict[str, dict[str, Any]]:
        """Lines of the index by path, the last one winning; anything unreadable is skipped."""
        file, rows = self.root / "index.jsonl", list[str]()
        if plain.no_file(file) is None:
            with contextlib.suppress(OSError):
                rows = [row for row in file.read_text(encoding="utf-8", errors="replace").split("\n") if row.strip()]
        lines: dict[str, dict[str, Any]] = {}
        for row in rows:
            with contextlib.suppress(plain.Misfit):
                line = plain.parse(row)
                _LINE(line, "")
                lines[line["path"]] = {name: line[name] for name in ("stamp", "fingerprint", "request")}
        is_file = not os.path.lexists(file) or file.is_file()
        self._is_ours = is_file and (bool(lines) or all(row.startswith(_OPENING[: len(row)]) for row in rows))
        return lines

    @functools.cached_property
    def _owns_index(self) -> bool:
        """Whether the index is ours to write: it is not there, or holds a line of ours, or only torn ones."""
        if self._is_ours is None:
            self._index()
        if not self._is_ours:
            file = self.root / "index.jsonl"
            _log.warning("%s was not written by headwise: it stays as it is, and results are found without it", file)
        return bool(self._is_ours)


class PhaseStore:
    """Trained phases, addressed by content: ``fingerprint`` covers the previous phase, method, weights, data, seed.

    Args:
        root: of the results; phases lie in its folder ``phases``.
        heartbeat: seconds between signs of life of a worker.
        expiry: seconds without one after which another worker takes over.
        on_bad: as for `ResultStore`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        heartbeat: float = 10.0,
        expiry: float = 120.0,
        on_bad: Callable[[ResultError], None] = _report,
    ) -> None:
        self.root, self.heartbeat, self.expiry, self.on_bad = Path(root), heartbeat, expiry, on_bad

    def path(self, fingerprint: str) -> Path:
        """Return the folder of a phase, of 8 to 64 hex digits; it need not exist."""
        if not _HEX.fullmatch(fingerprint):
            raise ConfigError(f"fingerprint of a phase must be 8 to 64 hex digits, got {fingerprint!r}")
        return self.root / "phases" / fingerprint

    def finished(self, fingerprint: str) -> PhaseResult | None:
        """Return the record of a finished phase, None if it is not finished or its record cannot be read."""
        path = self.path(fingerprint) / "phase.json"
        try:
            return PhaseResult.from_json(load_json(path), path)
        except FileNotFoundError:
            return None
        except ResultError as error:
            self.on_bad(error)
            return None

    def finish(self, fingerprint: str, result: PhaseResult) -> Path:
        """Record a phase as finished; call it after its tensors are on disk."""
        path = self.path(fingerprint) / "phase.json"
        stamped = dataclasses.replace(result, fingerprint=fingerprint)
        atomic.write_json(path, canonical(stamped.to_json(), "phase", merge=False))
        return path

    def adopt(self, other: PhaseStore) -> None:
        """Take over the finished phases of another store, in place of this one's, and remove what is left of it.

        Each file is replaced whole, the record of a phase last.

        Raises:
            CheckpointError: if tensors are not those that their record speaks of; then nothing is taken over.
        """
        records = sorted(other.root.glob("phases/*/phase.json"))
        for record in records:
            _check_tensors(record)
        for record in records:
            folder = self.path(record.parent.name)
            folder.mkdir(parents=True, exist_ok=True)
            # claims have no suffix: they belong to the work that ends here
            files = [file for file in record.parent.iterdir() if file.suffix]
            for file in sorted(files, key=lambda file: file == record):
                file.replace(folder / file.name)
        shutil.rmtree(other.root, ignore_errors=True)

    def claim(
        self, fingerprint: str, wait: bool = True, on_wait: Callable[[Mapping[str, Any]], None] | None = None
    ) -> Claim:
        """Take a phase for this worker, waiting for whoever has it.

        ::

            with store.claim(fingerprint) as claim:
                if claim.held:      # not finished, and ours
                    ...             # train, save tensors
                    store.finish(fingerprint, result)
            result = store.finished(fingerprint)

        Not held means that the phase is finished. The claim ends with the block, whatever ends the block.

        Raises:
            BusyError: with ``wait=False``, if another worker has it.
        """
        return Claim(
            self.path(fingerprint),
            heartbeat=self.heartbeat,
            expiry=self.expiry,
            wait=wait,
            on_wait=on_wait,
            done=lambda: self.finished(fingerprint) is not None,
        )


def _check_tensors(record: Path) -> None:
    """Refuse a phase whose tensors are not those that its record has the hash of."""
    expected = PhaseResult.from_json(load_json(record), record).sha256
    for file in record.parent.glob("*.safetensors") if expected is not None else ():
        actual = sha256_of(file)
        if actual != expected:
            raise CheckpointError(
                f"{file} is damaged: sha256 {actual[:16]}, recorded {str(expected)[:16]}; train the run again with "
                "resume=force"
            )


def _conflict(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    lines = differences(stored, asked) or ["(the stored file does not say what it was made with)"]
    return (
        f"{path} holds another configuration; stored vs asked: {few(lines, _SHOWN)}. "
        "Choose another name=, ask for what is stored, or delete the folder"
    )


def _stamp(path: Path) -> list[int] | None:
    """Size and modification time, which change when a file does; None of what the system does not tell of."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
