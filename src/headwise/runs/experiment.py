"""run(cfg): from a composed configuration to a recorded result.

Nothing heavy is imported until a run is really needed: an unknown option, ``--help`` and a finished run answer without
torch.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.command import Failed
from headwise.commands.command import launch as launch
from headwise.commands.messages import one_line
from headwise.errors import ConfigError, HeadwiseError, Interrupted, ResultConflict, StorageError
from headwise.protocol.job import asked, overrides_of
from headwise.protocol.plan import Plan, plan_run, root_of
from headwise.protocol.search import check_search
from headwise.report.ending import around, summary
from headwise.results.store import Result, ResultStore
from headwise.runs import lifeline, postponed
from headwise.runs.ledger import Entry, Ledger, folder_of
from headwise.storage import atomic
from headwise.storage.claims import BusyError, Claim, describe


def run(cfg: DictConfig) -> float | None:
    """Run one configuration, or return the stored accuracy of its last phase if it is finished.

    Returns:
        Accuracy of the last phase, percent. In a sweep NaN for a run without a result, see `obtained`.
    """
    result = obtained(cfg)
    return math.nan if result is None else result.accuracy


def obtained(cfg: DictConfig) -> Result | None:
    """The result of one configuration, computed if it is not stored.

    Returns:
        The record. In a sweep None for a run that failed, or that another process computes while ``wait`` is false; why
        is in the ledger.

    Raises:
        HeadwiseError: outside of a sweep, for anything the user can mend. The traceback is in the run's folder, nothing
            finished is lost.
    """
    lifeline.hold()
    sweep = _in_sweep()
    plan = None
    try:
        plan = plan_run(cfg)
        if not plan.config.get("variant"):
            plan = replace(plan, key=ResultStore(plan.root).place(plan.key, plan.identity))
        return _run(plan)
    except BusyError as busy:
        if not sweep:
            raise
        print(f"skipped: {busy}", flush=True)
    except Interrupted as stop:
        if sweep:  # the user stops the sweep, not only this run of it
            raise KeyboardInterrupt(str(stop)) from stop
        raise
    except Exception as error:
        if sweep or plan is not None:
            _note_failure(error, plan, cfg)
        if not sweep:
            raise
        place = shlex.join(overrides_of()) if plan is None else plan.folder
        print(f"failed: {place}: {one_line(error)}", file=sys.stderr, flush=True)
    return None


def _in_sweep() -> bool:
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def _note_failure(error: Exception, plan: Plan | None, cfg: DictConfig) -> None:
    """Note a failure where the sweep and its status look, and the traceback of one that was not meant for the user."""
    overrides = overrides_of()
    if plan is not None and not isinstance(error, HeadwiseError) and (plan.folder / "failure.txt").is_file():
        error.add_note(f"traceback: {plan.folder / 'failure.txt'}")
    if request := asked():
        path = None if plan is None or not plan.folder.is_dir() else folder_of(plan.root, plan.key)
        trace = traceback.format_exc() if path is None else None
        entry = Entry(overrides=overrides, path=path, failure=one_line(error), trace=trace)
        with contextlib.suppress(OSError, ConfigError, OmegaConfBaseException):
            Ledger(root_of(cfg.root)).write(request, entry)


def _run(plan: Plan) -> Result:
    """Take the stored result, or claim the run and train it."""
    store = ResultStore(plan.root)
    done = store.get(plan.key, plan.identity)
    if done is not None and plan.resume == "never":
        raise ResultConflict(
            f"{plan.folder} already holds this result, and resume=never forbids that; "
            "resume=auto takes it, resume=force trains again and replaces it"
        )
    if done is not None and plan.resume == "auto":
        print(f"already finished: {plan.folder}")
        with contextlib.suppress(StorageError):  # a root that may only be read has its results all the same
            if plan.request:
                store.recognise(done, plan.request)
                _note_place(plan)
    else:
        done = _claimed(plan, store)
    print(summary(done, around(done, store), suggest=not _in_sweep()), flush=True)
    return done


def _claimed(plan: Plan, store: ResultStore) -> Result:
    """Train under the run's claim; if another process finishes it meanwhile, that is the result."""
    with postponed.loading():
        postponed.postpone()
        method = plan.build_method()  # what is none is refused before anything lies in the root
        # these need torch, as the method does, and no other part of a run
        from headwise.network.catalog import check_name
        from headwise.runs.execution import execute
    check_search(method, plan.protocol.search, plan.protocol.epochs)
    check_name(plan.config["backbone"]["timm_name"])
    _note_place(plan)
    result: Result | None = None

    def is_done() -> bool:
        # with resume=force the stored result is what is to be replaced, so it ends no waiting
        return result is not None or (plan.resume != "force" and store.get(plan.key, plan.identity) is not None)

    with Claim(plan.folder, wait=plan.wait, on_wait=_waiting, done=is_done) as claim:
        if claim.held:
            try:
                result = execute(plan, method)
            except BaseException as error:
                if not isinstance(error, Interrupted | KeyboardInterrupt):
                    with contextlib.suppress(OSError):  # a full disk is what failed, perhaps
                        atomic.write_text(plan.folder / "failure.txt", traceback.format_exc())
                raise
            (plan.folder / "failure.txt").unlink(missing_ok=True)
    result = result or store.get(plan.key, plan.identity)
    if result is None:
        raise ResultConflict(f"{plan.folder} was finished by another process, and its result is gone again; run again")
    return result


def _note_place(plan: Plan) -> None:
    """Note where the run lies; an earlier failure is forgotten."""
    if plan.request:
        entry = Entry(overrides=plan.overrides, path=folder_of(plan.root, plan.key))
        Ledger(plan.root).write(plan.request, entry)


def _waiting(holder: Mapping[str, Any]) -> None:
    """Say who computes the run, at once and then every ten minutes."""
    if holder["waited"] % 600 < 10:
        print(f"waiting for {describe(holder)}, which computes this run", flush=True)


def job(cfg: DictConfig) -> float | None:
    """`run` as hydra calls it, which would print an error of its own in front of ours."""
    try:
        return run(cfg)
    except Exception as error:
        raise Failed from error
