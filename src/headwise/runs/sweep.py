"""A sweep: which of its runs are finished, which are left, and what became of them.

Finished runs are found in the index by their requests, before anything is composed. The rest goes to hydra's launcher,
whichever it is. A run never raises there: it notes in the ledger why it failed, and the sweep reads that. So a worker
that dies is one failed run, and the summary does not depend on what a launcher passes back.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from headwise.commands.composition import besides_seed, unlike
from headwise.commands.messages import one_line, text_of
from headwise.errors import SweepError
from headwise.protocol.job import folders
from headwise.protocol.plan import root_of, still_holds
from headwise.protocol.request import request_of
from headwise.report.ending import missing_controls
from headwise.results.store import Finished, Result, ResultError, ResultStore
from headwise.runs import lifeline
from headwise.runs.ledger import Entry, Ledger, State, finished_requests
from headwise.schema.secret import refuse_secrets
from headwise.storage.claims import describe

POLL = 5.0
"""Seconds between looks at runs that other processes compute."""
SHOWN = 20
"""Finished runs that are listed one by one."""
TRIES = 5
"""Launches of a run that ends without a trace, or that others begin and leave."""


Launch = Callable[[list[list[str]], int], Sequence[JobReturn]]


class Sweep:
    """The runs of one command.

    Args:
        config: that all jobs share, with hydra's node.
        jobs: overrides of each.
        launch: takes overrides of several jobs and the number of the first; hydra's launcher.
        validate: told all jobs that are not finished before anything is said; raises for one that cannot be composed.
        work: how much work a job is, where several run at once: the longest begin first, so that none is left alone at
            the end. None keeps the order of the jobs, in which one process finds images and networks of the one before.

    Raises:
        ConfigError: if a job is given a secret.
    """

    def __init__(
        self,
        config: DictConfig,
        jobs: Sequence[Sequence[str]],
        launch: Launch,
        validate: Callable[[list[list[str]]], None],
        work: Callable[[list[str]], float] | None = None,
    ) -> None:
        for job in jobs:
            refuse_secrets(None, job)
        sources = folders(config.hydra.runtime.config_sources)
        self.config, self.launch, self.validate, self.work = config, launch, validate, work
        self.jobs = {request_of(job, sources): list(job) for job in jobs}
        self.root = root_of(config.root)
        self.ledger = Ledger(self.root)
        self.resume = str(config.resume)
        self.numbers: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.launched = 0
        self.tries = Counter[str]()

    def run(self) -> list[float]:
        """Compute what is not finished.

        Returns:
            The accuracy of every job in order, percent; NaN where a run has none.

        Raises:
            SweepError: after all others are done, if runs failed; says which, why, where, and how to run them again.
        """
        self._recognise()
        left = [request for request in self.jobs if request not in self.numbers | self.failures]
        if left:
            self.validate([self.jobs[request] for request in left])
        if len(self.jobs) > 1 or self.numbers:
            runs = "run" if len(self.jobs) == 1 else "runs"
            print(f"{len(self.jobs)} {runs}: {len(self.jobs) - len(left)} finished, {len(left)} to do", flush=True)
        own: set[str] = set()
        left = self._longest_first(left)
        while left:
            busy = self._attempt(left, own)
            left = self._await(busy, own) if busy else []
        if self.launched:
            self._suggest()
        if self.failures:
            raise SweepError(self.summary())
        return [self.numbers[request] for request in self.jobs]

    def _longest_first(self, requests: list[str]) -> list[str]:
        """The order in which runs are handed out; the same one every time."""
        if self.work is None or len(requests) < 2:
            return requests
        amounts = {
            kind: self.work(list(job)) for kind, job in unlike(self.jobs[request] for request in requests).items()
        }
        # sorting leaves runs of one length in their order
        return sorted(requests, key=lambda request: amounts[besides_seed(self.jobs[request])], reverse=True)

    def _suggest(self) -> None:
        """Say once which controls the runs lack: each run by itself would say the same."""
        lines = finished_requests(self.root)
        results = [result for request in self.numbers if (result := self._stored(lines.get(request))) is not None]
        for line in missing_controls(results, ResultStore(self.root)):
            print(line, flush=True)

    def _recognise(self) -> None:
        """Take the numbers of finished runs, if their images and weights are still the same."""
        if self.resume == "force":
            return
        lines = finished_requests(self.root)
        for request in self.jobs:
            result = self._stored(lines.get(request))
            if result is None or not still_holds(result):
                continue
            folder = result.key.path(self.root)
            if self.resume == "never":
                self.failures[request] = f"{folder} already holds this result, and resume=never forbids that"
                continue
            self.numbers[request] = _number(result)
            if len(self.numbers) <= SHOWN:
                print(f"already finished: {folder}: {_number(result):.2f} %")
        if len(self.numbers) > SHOWN:
            print(f"already finished: and {len(self.numbers) - SHOWN} more")

    def _stored(self, line: Finished | None) -> Result | None:
        if line is None:
            return None
        try:
            return Result.read(line.key.path(self.root) / "result.json")
        except (FileNotFoundError, ResultError):
            return None

    def _attempt(self, left: Sequence[str], own: set[str]) -> list[str]:
        """Launch runs until none is left that nobody computes; returns those that others compute.

        Args:
            left: requests.
            own: gets those whose workers belong to this sweep and go on without it, after a launcher gave up.
        """
        busy: list[str] = []
        waiting = list(left)
        while waiting:
            batch = [self._overrides(request) for request in waiting]
            returns: Sequence[JobReturn | None]
            broken: Exception | None = None
            try:
                with self._tied(), warnings.catch_warnings():
                    # joblib's processes are replaced when they have grown; one that dies is seen all the same
                    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
                    returns = self.launch(batch, self.launched)
            except Exception as error:  # a worker died and took the launcher with it
                broken, returns = error, [None] * len(waiting)
            self.launched += len(batch)
            states = self._states(waiting)
            unsettled = []
            for request, back in zip(waiting, returns, strict=True):
                if not self._settle(request, back, states[request], lost=broken is not None):
                    unsettled.append(request)
            self.tries.update(unsettled)
            running = [request for request in unsettled if states[request].name == "running"]
            if broken is not None:
                if len(unsettled) == len(waiting) and not running:
                    raise broken
                own.update(running)
                print(f"the launcher gave up ({one_line(broken)}); going on with what it left", flush=True)
            busy += running
            waiting = [request for request in unsettled if request not in running]
            for request in [request for request in waiting if self.tries[request] >= TRIES]:
                self.failures[request] = f"it left neither a result nor a reason, {TRIES} times"
                waiting.remove(request)
        return busy

    def _settle(self, request: str, back: JobReturn | None, state: State, lost: bool) -> bool:
        """Take over what became of a run; False if that is not decided.

        Args:
            back: what the launcher brought back, if it did.
            lost: whether a dead worker was this sweep's.
        """
        if back is not None and back.status == JobStatus.FAILED:
            try:
                _ = back.return_value
            except Exception as error:  # not one of `run`, which raises none in a sweep
                self.failures[request] = one_line(error)
                print(f"failed: {shlex.join(self.jobs[request])}: {text_of(error)}", flush=True)
        elif back is not None and isinstance(back.return_value, float) and not math.isnan(back.return_value):
            self.numbers[request] = back.return_value
        elif state.name == "done" and (result := self._stored(state.finished)) is not None:
            self.numbers[request] = _number(result)
        elif state.name == "failed" and (lost or not state.holder):
            self.failures[request] = state.why
            if state.holder:  # it could not note that itself
                print(f"failed: {shlex.join(self.jobs[request])}: {state.why}", flush=True)
                entry = state.entry or Entry(overrides=tuple(self.jobs[request]))
                self.ledger.write(request, replace(entry, failure=state.why))
        return request in self.numbers or request in self.failures

    def _await(self, busy: Sequence[str], own: set[str]) -> list[str]:
        """Wait for runs that others compute; returns those that somebody has to begin again."""
        for request in busy:
            state = self.ledger.states([request])[request]
            if state.name == "running" and request not in own:
                print(f"computed elsewhere, by {describe(state.holder)}: {shlex.join(self.jobs[request])}", flush=True)
        left: list[str] = []
        waiting = list(busy)
        while waiting and not left:
            states = self._states(waiting)
            for request, state in states.items():
                if state.name != "running" and not self._settle(request, None, state, lost=request in own):
                    left.append(request)
            waiting = [r for r in waiting if not (r in self.numbers or r in self.failures or r in left)]
            if waiting and not left:
                time.sleep(POLL)
        return [*left, *waiting]

    def _states(self, requests: Sequence[str]) -> dict[str, State]:
        """By the ledger; with resume=force an earlier result does not count."""
        return self.ledger.states(requests, {} if self.resume == "force" else None)

    def _overrides(self, request: str) -> list[str]:
        """A job as it is launched: it does not wait for others, unless that was asked for."""
        job = self.jobs[request]
        return job if any(override.startswith("wait=") for override in job) else [*job, "wait=false"]

    @contextlib.contextmanager
    def _tied(self) -> Iterator[None]:
        """Let workers end with this process, but for jobs that were handed to SLURM."""
        if str(self.config.hydra.launcher.get("_target_", "")).endswith("SlurmLauncher"):
            yield
            return
        with lifeline.thrown():
            yield

    def summary(self) -> str:
        """What failed: why, where, and how to run it again."""
        count, total = len(self.failures), len(self.jobs)
        lines = [f"{count} of {total} runs failed. The same command tries them again, and takes what is finished."]
        for request, why in self.failures.items():
            entry = self.ledger.read(request)
            place = None if entry is None or entry.path is None else self.root / entry.path
            note = place / "failure.txt" if place is not None else self.ledger.path(request)
            lines.append(f"  {place or ' '.join(self.jobs[request])}: {why}")
            if note.is_file():
                lines.append(f"    traceback: {note}")
            lines.append(f"    alone: python train.py {shlex.join(self.jobs[request])}")
        return "\n".join(lines)


def _number(result: Result) -> float:
    return math.nan if result.accuracy is None else result.accuracy
