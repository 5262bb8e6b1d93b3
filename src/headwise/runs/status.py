"""How far a sweep is: done, running, failed, missing, and an estimate of what is left. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from headwise.protocol.request import NOT_ASKED, request_of
from headwise.results.reading import below, of_damaged
from headwise.results.records import Result, ResultError
from headwise.results.store import ResultStore
from headwise.runs.ledger import STATES, Entry, Ledger, folder_of

SHOWN = 20
"""Runs of a state that are listed one by one."""
SPARE, CONTEXT = 1.2, 1 << 30
"""What a run may need of a GPU beside its tensors: of their bytes for gaps between them, and for CUDA itself."""
MOST_SHARES = 16
_FIRST = {name: place for place, name in enumerate(STATES)}


@dataclass(kw_only=True)
class Run:
    """One job of a sweep.

    Attributes:
        state: done, running, failed or missing.
        asked: its overrides that differ within the sweep.
        path: of its folder; None if nothing has begun it.
        accuracy: of a run that is done, percent.
        seconds: that a run took which is done, without what it shared with earlier ones; since its beginning of one
            that is running.
        host, pid: of who computes it, or died over it.
        why: it failed.
    """

    state: str
    asked: str = ""
    overrides: list[str] = field(default_factory=list)
    path: str | None = None
    accuracy: float | None = None
    seconds: float | None = None
    host: str | None = None
    pid: int | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """Of a sweep, at one moment.

    Attributes:
        runs: in the order of the sweep.
        elapsed: seconds from the first run's beginning until now, or until the last result if nothing is running.
        damaged: records below the root that cannot be read; these runs count as missing.
        peak: most bytes of a GPU that training a phase of a finished run took; None where none ran on one.
        gpu: bytes of the smallest GPU that one ran on; None where no record says.
    """

    runs: list[Run]
    elapsed: float | None
    damaged: list[str] = field(default_factory=list)
    peak: int | None = None
    gpu: int | None = None

    @property
    def shares(self) -> int | None:
        """Runs like those that are done which a GPU has memory for at once; None: unknown."""
        if self.peak is None or self.gpu is None:
            return None
        return max(1, min(MOST_SHARES, int(self.gpu / (SPARE * self.peak + CONTEXT))))

    @property
    def counts(self) -> dict[str, int]:
        return dict.fromkeys(STATES, 0) | Counter(run.state for run in self.runs)

    @property
    def spent(self) -> float:
        """Seconds that all runs took which are done."""
        return sum(run.seconds or 0.0 for run in self.runs if run.state == "done")

    @property
    def left(self) -> float | None:
        """Seconds of computing until every run is done; None: unknown.

        By the mean of the runs of the same method and task, else of the same method, else of all.
        """
        taken: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        for run in self.runs:
            if run.state == "done" and run.seconds is not None:
                for kind in _kinds(run):
                    taken[kind].append(run.seconds)
        if not taken:
            return None
        means = {kind: sum(values) / len(values) for kind, values in taken.items()}
        total = 0.0
        for run in self.runs:
            if run.state != "done":
                spent = (run.seconds or 0.0) if run.state == "running" else 0.0
                total += max(0.0, next(means[kind] for kind in _kinds(run) if kind in means) - spent)
        return total

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "elapsed_seconds": self.elapsed,
            "spent_seconds": self.spent,
            "left_seconds": self.left,
            "workers": max(1, self.counts["running"]),
            "damaged": self.damaged,
            "gpu": {"peak_memory": self.peak, "memory": self.gpu, "shares": self.shares},
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }


def survey(root: Path, jobs: Mapping[str, Sequence[str]], folders: Sequence[str]) -> SweepStatus:
    """Look at every run of a sweep.

    A run counts if it was asked for with all overrides of its job, and perhaps more (``data.root=...``), under the
    configuration as it is now.
    """
    ledger = Ledger(root)
    entries = {r: e for r, e in ledger.entries().items() if r in jobs or request_of(e.overrides, folders) == r}
    bad: list[ResultError] = []
    store = ResultStore(root, on_bad=bad.append)
    done = {folder_of(root, line.key): line for line in store.finished().values()}
    common = set.intersection(*(set(job) for job in jobs.values())) if len(jobs) > 1 else set()
    noted = _noted(jobs, entries, {line.request: path for path, line in done.items() if line.request}, common)
    runs: list[Run] = []
    for request, job in jobs.items():
        candidates = [_look(ledger, root, entry, done) for entry in noted[request]]
        run = min(candidates, key=lambda run: _FIRST[run.state]) if candidates else Run(state="missing")
        run.asked = " ".join(override for override in job if override not in common) or " ".join(job)
        run.overrides = list(job)
        runs.append(run)
    results = _results(runs)
    times, (peak, gpu) = _timed(results), _memory([result for _, result, _ in results])
    for run in runs:
        if run.state == "running" and run.seconds is not None:
            times += [time.time() - run.seconds, time.time()]
    damaged = sorted({below(error.path, root) for error in bad})
    elapsed = max(times) - min(times) if times else None
    return SweepStatus(runs=runs, elapsed=elapsed, damaged=damaged, peak=peak, gpu=gpu)


def _memory(results: Sequence[Result]) -> tuple[int | None, int | None]:
    """Most bytes that training took on a GPU, and those of the smallest GPU."""
    on_gpu = [(result, size) for result in results if (size := _gib(result.machine)) is not None]
    peaks = [phase.peak_memory for result, _ in on_gpu for phase in result.phases if phase.peak_memory]
    return max(peaks, default=None), min((int(size * 2**30) for _, size in on_gpu), default=None)


def _gib(machine: Mapping[str, Any]) -> float | None:
    """Memory of the GPU that a record names; None of a CPU, and of older code."""
    size = machine.get("accelerator_gib")
    return size if isinstance(size, int | float) and not isinstance(size, bool) and 0 < size < 2**20 else None


def _noted(
    jobs: Mapping[str, Sequence[str]], entries: Mapping[str, Entry], finished: Mapping[str, str], common: set[str]
) -> dict[str, list[Entry]]:
    """What is noted of every job, by request: its own note or finished run, else those of runs that asked for more."""
    # a job is compared only with notes that agree in what the jobs differ by: one look-up instead of jobs x notes
    keys = {override.partition("=")[0] for job in jobs.values() for override in job if override not in common}
    similar: defaultdict[frozenset[str], list[Entry]] = defaultdict(list)
    for entry in entries.values():
        similar[_chosen(entry.overrides, keys)].append(entry)
    noted = {}
    for request, job in jobs.items():
        wanted = {override for override in job if override.partition("=")[0] not in NOT_ASKED}
        if request in entries:
            noted[request] = [entries[request]]
        elif request in finished:
            noted[request] = [Entry(overrides=tuple(job), path=finished[request])]
        else:
            noted[request] = [e for e in similar[_chosen(job, keys)] if wanted <= set(e.overrides)]
    return noted


def _results(runs: Sequence[Run]) -> list[tuple[float, Result, Run]]:
    """Results of the runs that are done and when they ended; a run whose result cannot be read becomes missing."""
    results = []
    for run in runs:
        if run.state == "done":
            try:
                result = Result.read(Path(str(run.path)) / "result.json")
                results.append((_moment(result), result, run))
            except (FileNotFoundError, ResultError, ValueError) as error:  # gone since a moment ago, or without a time
                run.state, run.why = "missing", str(error)
    return results


def _chosen(overrides: Sequence[str], keys: set[str]) -> frozenset[str]:
    return frozenset(override for override in overrides if override.partition("=")[0] in keys)


def _look(ledger: Ledger, root: Path, entry: Entry, done: Mapping[str, Any]) -> Run:
    """The state of a run from what is noted of it."""
    state = ledger.state_of(entry)
    if entry.path in done and entry.failure is None and state.name != "running":  # running again: resume=force
        return Run(state="done", path=str(root / str(entry.path)))
    since = state.holder.get("since")
    return Run(
        state=state.name,
        path=None if entry.path is None else str(root / entry.path),
        seconds=time.time() - since if state.name == "running" and since else None,
        host=state.holder.get("host"),
        pid=state.holder.get("pid"),
        why=state.why,
    )


def _timed(results: Sequence[tuple[float, Result, Run]]) -> list[float]:
    """Fill in accuracy and seconds of runs that are done; returns when they began and ended, seconds since 1970.

    A run takes as long as the phases that no earlier one had trained, or, with its tests and trials, from its
    configuration to its result, whichever is more: the first forgets trials, the second what came before an
    interruption.
    """
    times, seen = [], set[str]()
    for ended, result, run in sorted(results, key=lambda timed: timed[0]):
        own = [phase for phase in result.phases if not (phase.fingerprint and phase.fingerprint in seen)]
        seen |= {phase.fingerprint for phase in result.phases}
        begun = ended
        with contextlib.suppress(OSError):
            begun = (Path(str(run.path)) / "config.yaml").stat().st_mtime
        run.accuracy = result.accuracy
        run.seconds = max(sum(phase.seconds for phase in own), ended - begun)
        times += [ended - run.seconds, ended]
    return times


def _moment(result: Result) -> float:
    """When a run ended, seconds since 1970."""
    return datetime.fromisoformat(result.created).timestamp()


def _kinds(run: Run) -> list[tuple[str, ...]]:
    """What an estimate may rest on, the nearest first: runs of its method and task, of its method, all."""
    method = tuple(override for override in run.overrides if override.startswith("method"))
    task = tuple(override for override in run.overrides if override.startswith("dataset="))
    return [(*method, *task), method, ()]


def text(status: SweepStatus, name: str) -> str:
    """The status for a person."""
    counts = status.counts
    head = ", ".join(f"{counts[state]} {state}" for state in STATES[1:])
    lines = [f"{name}: {counts['done']} of {len(status.runs)} runs done, {head}"]
    if status.elapsed is not None:
        lines.append(f"elapsed {span(status.elapsed)}, finished runs took {span(status.spent)}")
    if counts["done"] < len(status.runs):
        left, workers = status.left, max(1, counts["running"])
        estimate = "unknown until one run is finished" if left is None else f"about {span(left / workers)}"
        lines.append(
            f"left {estimate}" + ("" if left is None else f" with {workers} worker(s), {span(left)} of computing")
        )
    if status.peak is not None and status.gpu is not None and status.shares is not None:
        used = f"GPU memory: at most {status.peak / 2**30:.1f} of {status.gpu / 2**30:.0f} GiB in training"
        # rounded down, so that as many shares as that fit
        share = math.floor(1000 / status.shares) / 1000
        hint = (
            f"; {status.shares} runs at once, if tests take no more, with hydra.launcher.ray.remote.num_gpus={share:g}"
        )
        lines.append(used + (hint if status.shares > 1 else ""))
    for state in STATES[1:]:
        runs = [run for run in status.runs if run.state == state]
        lines += [f"{state}:"] if runs else []
        for run in runs[:SHOWN]:
            where = f" by process {run.pid} on {run.host}" if run.pid else ""
            since = f" for {span(run.seconds)}" if state == "running" and run.seconds is not None else ""
            lines.append(f"  {run.asked}{where}{since}{f': {run.why}' if run.why else ''}")
            if state == "failed" and run.path and (Path(run.path) / "failure.txt").is_file():
                lines.append(f"    traceback: {Path(run.path) / 'failure.txt'}")
        lines += [f"  and {len(runs) - SHOWN} more"] if len(runs) > SHOWN else []
    if status.damaged:
        lines.append(of_damaged(status.damaged))
    return "\n".join(lines)


def span(seconds: float) -> str:
    """A time as a person says it: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
