"""What a run leaves behind: its key, what each phase reached, and what it was made with; to JSON and back.

Standard library only: a result must be readable when torch is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from headwise.errors import ConfigError, HeadwiseError
from headwise.results import shapes
from headwise.results.fingerprint import fingerprint
from headwise.results.provenance import now
from headwise.schema.effective import effective, effective_method
from headwise.storage.plain import Misfit, read_json

FORMAT = shapes.FORMAT
OWN_FOLDERS = {
    "phases": "the shared phases",
    "ledger": "what was asked for",
    "tables": "tables of results",
    "figures": "figures of results",
    "multirun": "hydra's notes of sweeps",
}
"""Folders of a root that are no runs'."""
GROUP_SIZES = {"natural": 7, "specialized": 4, "structured": 8}
"""Tasks per group of VTAB-1k. Averages exist only over all of them."""
PRECISION, MAP, ACCURACY = "average_precision", "mAP", "accuracy"
FROM, OTHERWISE = "from", "otherwise"
"""Of a run that goes on from another: the key that speaks of it, and within the key of what was trained differently."""
FEWSHOT, FEWSHOT_SETS = "fewshot", 5
"""The group of the few-shot sets, and their number."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]|\.\.")


class ResultError(HeadwiseError):
    """A record that cannot be read: cut off, not JSON, or without a field it needs. ``path`` names the file."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is not a usable record: {why}; it counts as missing, delete it to be rid of this")
        self.path = path


@dataclass(frozen=True, order=True)
class RunKey:
    """Names of a run, one folder each."""

    name: str
    method: str
    dataset: str
    variant: str
    seed: int

    def __post_init__(self) -> None:
        for part in ("name", "method", "dataset", "variant"):
            value = getattr(self, part)
            if not isinstance(value, str) or not value or value != value.strip() or len(value) > 200:
                raise ConfigError(f"{part} of a run must be 1 to 200 characters without outer blanks, got {value!r}")
            if _FORBIDDEN.search(value) or value.startswith("."):
                raise ConfigError(
                    f"{part} of a run names a folder: no separator, no control character, no '..', no leading '.'; "
                    f"got {value!r}"
                )
        if self.name in OWN_FOLDERS:
            raise ConfigError(f"name of a run may not be {self.name!r}: that folder holds {OWN_FOLDERS[self.name]}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"seed of a run must be an integer >= 0, got {self.seed!r}")

    def path(self, root: str | Path) -> Path:
        """Return the run's folder under ``root``."""
        return Path(root) / self.name / self.method / self.dataset / self.variant / f"seed-{self.seed}"

    @classmethod
    def of(cls, folder: Path) -> RunKey:
        """Read the key back from a run's folder; refused if its last five parts are not those of a run."""
        *_, name, method, dataset, variant, seed = ("", "", "", "", *folder.parts)
        number = seed.removeprefix("seed-")
        if not (seed.startswith("seed-") and number.isdecimal()):
            raise ConfigError(f"{folder} is not a run's folder: it must end in seed-<n>")
        return cls(name, method, dataset, variant, int(number))


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What one phase cost and reached."""

    label: str
    accuracy: float | None
    """Test accuracy in percent, 0..100, or mAP, see `metric`; None where the phase was not tested."""
    num_tunable: int
    """Tunable parameters without the head."""
    num_head: int
    stored_bytes: int
    """Payload of the exported tensors, without header and head."""
    seconds: float
    num_test: int | None = None
    """Test images behind the accuracy."""
    images_per_second: float | None = None
    peak_memory: int | None = None
    """Bytes at the highest point of training: of the GPU what torch allocated there, of a CPU the resident set of the
    process, nothing subtracted (interpreter, libraries, network and images count as well); None where unknown."""
    epochs: int = 0
    steps: int = 0
    active_heads: Any = None
    """JSON: the number of heads left on, or one per layer; None where nothing is gated."""
    fingerprint: str = ""
    sha256: str | None = None
    """Of the file that holds the phase's tensors; None in records of older code, and where nothing is kept."""
    method: dict[str, Any] = field(default_factory=dict)
    """``{"_target_": ..., arguments}``: enough to build the phase's method again."""
    train_loss: float | None = None
    """Mean loss of the last epoch, nats."""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not self.label:
            raise ConfigError(f"label of a phase must be a non-empty string, got {self.label!r}")
        for name in ("num_tunable", "num_head", "stored_bytes", "epochs", "steps", "num_test", "peak_memory"):
            value = getattr(self, name)
            if value is None and name in ("num_test", "peak_memory"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} of phase {self.label!r} must be an integer >= 0, got {value!r}")
        for name, top in (("accuracy", 100.0), ("seconds", math.inf), ("images_per_second", math.inf)):
            value = getattr(self, name)
            if value is None and name != "seconds":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
                raise ConfigError(f"{name} of phase {self.label!r} must be in 0..{top:g}, got {value!r}")
        if self.sha256 is not None and not (isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256)):
            raise ConfigError(f"sha256 of phase {self.label!r} must be 64 hex digits, got {self.sha256!r}")
        if not all(_is_mask(row) for row in self.masks):
            raise ConfigError(f"heads of phase {self.label!r} must have a place, a mask and a score each or none")
        wanted = self.gate.get("count") or self.gate.get("ratio")
        if wanted and self.masks and not self.is_masked:
            raise ConfigError(
                f"phase {self.label!r} was to switch {wanted} of the heads off, and all are on: its epoch is from "
                "before the heads were chosen"
            )

    @property
    def metric(self) -> str:
        """What ``accuracy`` is: `MAP` where images have several labels, whose `PRECISION` stands in ``extra``."""
        return MAP if PRECISION in self.extra else ACCURACY

    @property
    def gate(self) -> Mapping[str, Any]:
        """Fields of the phase's gate on heads; empty without one."""
        return self._noted("gate")

    @property
    def num_trials(self) -> int:
        """Trials of the search that chose fields of the phase; 0 where nothing was searched."""
        return int(self._search.get("num_trials") or 0)

    @property
    def searched(self) -> frozenset[str]:
        """Names of what a search chose: fields of the method, ``ne`` and ``score``."""
        return frozenset(self._search.get("searched") or ())

    @property
    def chosen(self) -> dict[str, Any]:
        """What a search chose, by the names of `searched`; of older records only what the method itself tells."""
        trial = self._search.get("chosen") or {}
        values = {**self.method, **trial, **trial.get("fields", {})}
        return {name: values[name] for name in sorted(self.searched) if name in values}

    @property
    def edges(self) -> list[str]:
        """Names of what a search chose at the end of what it tried."""
        return list(self._search.get("edges") or ())

    @property
    def asked(self) -> dict[str, Any]:
        """The method without the fields that a search chose: what phases share that may choose them differently."""
        return {name: value for name, value in self.method.items() if name not in self.searched}

    @property
    def _search(self) -> Mapping[str, Any]:
        return self._noted("search")

    def _noted(self, name: str) -> Mapping[str, Any]:
        part = self.extra.get(name)
        return part if isinstance(part, Mapping) else {}

    @property
    def mechanism(self) -> Mapping[str, float]:
        """Where its update lies, see `headwise.training.mechanism`; empty of older code, and without heads."""
        return self._noted("mechanism")

    @property
    def masks(self) -> list[Mapping[str, Any]]:
        """Of each projection of a gated phase its stage, block, proj, active (0 or 1 per head) and score (or None)."""
        return list(self.extra.get("heads") or []) if self.gate else []

    @property
    def is_masked(self) -> bool:
        """Whether heads are off."""
        return any(0 in row["active"] for row in self.masks)

    @property
    def heads_off(self) -> float:
        """Heads that are off, per layer and projection; 0 without a gate."""
        rows = self.masks
        return sum(row["active"].count(0) for row in rows) / len(rows) if rows else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Any, path: Path) -> Self:
        """Read back what `to_json` gave; fields this version does not know are skipped.

        Raises:
            ResultError: naming ``path``.
        """
        with _damaged(path):
            shapes.phase(raw, "")
            values = _known(cls, raw)
            if isinstance(values.get("method"), Mapping):
                # older code stored gates that do nothing in several ways: phases compare in one form
                values["method"] = effective_method(values["method"])
            return cls(**values)


def _is_mask(row: Any) -> bool:
    if not (isinstance(row, Mapping) and all(name in row for name in ("stage", "block", "proj", "active", "score"))):
        return False
    active, scores = row["active"], row["score"]
    return isinstance(active, list) and len(active) > 0 and (scores is None or len(scores) == len(active))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run: what was asked, what came out, and what it was made with."""

    key: RunKey
    identity: dict[str, Any]
    """The configuration reduced by `headwise.results.fingerprint.identity`."""
    phases: list[PhaseResult]
    config: dict[str, Any] = field(default_factory=dict)
    """The full resolved configuration."""
    labels: list[str] = field(default_factory=list)
    """Stamps that every table repeats: stand-in weights, synthetic, subset, unofficial split, TEST-SELECTED."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """``weights``, ``data`` and ``protocol`` (any JSON each): two results are comparable when these agree."""
    versions: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)
    request: str = ""
    """Hash of what asked for the run before it was composed; lets a sweep recognise it from the index."""
    fingerprint: str = ""
    """Hash of ``identity``; computed unless given."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise ConfigError(f"a result of {self.key} needs at least one phase")
        for name, kind in (("labels", list), ("identity", dict), ("config", dict), ("provenance", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} of a result must be a {kind.__name__}, got {getattr(self, name)!r}")
        if not self.fingerprint:
            # the class is frozen, and this is still its construction
            object.__setattr__(self, "fingerprint", fingerprint(self.identity))

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the last phase, percent."""
        return self.phases[-1].accuracy

    @property
    def metric(self) -> str:
        """What its accuracies are, see `PhaseResult.metric`."""
        return MAP if any(phase.metric == MAP for phase in self.phases) else ACCURACY

    @property
    def tested(self) -> list[PhaseResult]:
        """The phases that have a test accuracy; a table calls them P1, P2, ..."""
        return [phase for phase in self.phases if phase.accuracy is not None]

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def otherwise(self) -> list[str]:
        """In what the phases that it went on from were trained otherwise than its own; nothing of older records."""
        before = self.provenance.get(FROM)
        return list(before.get(OTHERWISE, ())) if isinstance(before, Mapping) else []

    @property
    def seconds(self) -> float:
        """Time of training, all phases together."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def num_tunable(self) -> int:
        """Parameters trained without the head, all tested phases together."""
        return sum(phase.num_tunable for phase in self.tested)

    @property
    def stored_bytes(self) -> int:
        """Payload without the head, all tested phases together."""
        return sum(phase.stored_bytes for phase in self.tested)

    @property
    def task(self) -> Mapping[str, Any]:
        """What is recorded of the task; empty if nothing is."""
        for source in (self.config, self.identity):
            recorded = source.get("dataset")
            if isinstance(recorded, Mapping) and "group" in recorded:
                return recorded
        return {}

    @property
    def group(self) -> str:
        """The task's VTAB group, or `FEWSHOT`; empty for a task of another benchmark."""
        name = str(self.task.get("group", "")).lower()
        return name if name in (*GROUP_SIZES, FEWSHOT) else ""

    @property
    def shots(self) -> int | None:
        """Training images per class of a few-shot set; None for other tasks."""
        return self.task.get("shots")

    @property
    def repeat(self) -> tuple[int, int]:
        """What tells repetitions of a cell apart: the seed, and of a few-shot set the draw (else 0)."""
        return self.key.seed, 0 if self.shots is None else int(self.task.get("draw") or 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the key's fields stand at the top level."""
        fields = dataclasses.asdict(self)
        return {"format": FORMAT, **fields.pop("key"), **fields}

    @classmethod
    def from_json(cls, raw: Any, path: Path) -> Self:
        """As `PhaseResult.from_json`."""
        with _damaged(path):
            shapes.RESULT(raw, "")
            key = RunKey(**{f.name: raw[f.name] for f in dataclasses.fields(RunKey)})
            phases = [PhaseResult.from_json(phase, path) for phase in raw["phases"]]
            values = _known(cls, {"identity": {}, **raw, "key": key, "phases": phases})
            identity = values["identity"]
            if isinstance(identity, Mapping) and (same := effective(identity)) != identity:
                values |= {"identity": same, "fingerprint": fingerprint(same)}  # what was asked now is hashed so
            return cls(**values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one ``result.json``.

        Raises:
            ResultError: if it is cut off, not JSON or lacks a field. FileNotFoundError: if there is none.
        """
        return cls.from_json(load_json(path), path)


def _known(cls: type, raw: Any) -> dict[str, Any]:
    return {f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name in raw}


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turn whatever reading a malformed record raises into `ResultError`."""
    try:
        yield
    except ResultError:
        raise
    except (HeadwiseError, Misfit) as error:
        raise ResultError(path, str(error)) from error


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ResultError: naming ``path``, if it holds something else or cannot be read. FileNotFoundError: if there is none.
    """
    try:
        return read_json(path)
    except Misfit as error:
        raise ResultError(path, str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ResultError(path, f"it cannot be read ({error.strerror})") from error
