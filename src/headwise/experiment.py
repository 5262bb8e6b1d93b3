"""run(cfg): from a composed configuration to a recorded result.

Nothing heavy is imported until a run is really needed: an unknown option, ``--help`` and a finished run answer without
torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise import atomic
from headwise.command import Failed
from headwise.command import launch as launch
from headwise.errors import ConfigError, HeadwiseError, Interrupted, ResultConflict
from headwise.plan import DEVICES, Plan, asked, check_made, instantiation, one_line, overrides_of, plan_run, root_of
from headwise.presets import preset_labels
from headwise.protocol import Protocol
from headwise.results import provenance
from headwise.results.claims import Claim, describe
from headwise.results.store import BusyError, PhaseResult, PhaseStore, Result, ResultStore
from headwise.search import Space, explore, search
from headwise.sweeps import lifeline
from headwise.sweeps.ledger import Entry, Ledger, folder_of
from headwise.tables import cells
from headwise.tables.controls import HEADS, KINDS, PHASE, controls_of, matches
from headwise.tracker import tracked as _logger

if TYPE_CHECKING:
    from headwise.backbone import Backbone
    from headwise.data.vtab import VTABDataModule
    from headwise.methods.base import Method

    Trained = tuple[Backbone, VTABDataModule, list[PhaseResult]]

AGAIN = "again"
"""Folder of a run in which resume=force trains; it is taken over when it is complete."""


def run(cfg: DictConfig) -> float | None:
    """Run one configuration, or return the stored accuracy of its last phase if it is finished.

    Returns:
        Accuracy of the last phase, percent. In a sweep NaN for a run that failed, or that another process computes
        while ``wait`` is false; why is in the ledger.

    Raises:
        HeadwiseError: outside of a sweep, for anything the user can mend. The traceback is in the run's folder, nothing
            finished is lost.
    """
    lifeline.hold()
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
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
            _record(error, plan, cfg)
        if not sweep:
            raise
        place = shlex.join(overrides_of()) if plan is None else plan.folder
        print(f"failed: {place}: {one_line(error)}", file=sys.stderr, flush=True)
    return math.nan


def _record(error: Exception, plan: Plan | None, cfg: DictConfig) -> None:
    """Note a failure where the sweep and its status look, and the traceback of one that was not meant for the user."""
    overrides = overrides_of()
    if plan is not None and not isinstance(error, HeadwiseError) and (plan.folder / "failure.txt").is_file():
        error.add_note(f"traceback: {plan.folder / 'failure.txt'}")
    if request := asked():
        path = None if plan is None else folder_of(plan.root, plan.key)
        trace = traceback.format_exc() if plan is None else None
        entry = Entry(overrides=overrides, path=path, failure=one_line(error), trace=trace)
        with contextlib.suppress(OSError, ConfigError, OmegaConfBaseException):
            Ledger(root_of(cfg.root)).write(request, entry)


def _run(plan: Plan) -> float | None:
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
        if plan.request:
            store.recognise(done, plan.request)
            _note(plan)
    else:
        done = _claimed(plan, store)
    print(summary(done, store.alike(done.key) if controls_of(done) else ()), flush=True)
    return done.accuracy


def _claimed(plan: Plan, store: ResultStore) -> Result:
    """Train under the run's claim; if another process finishes it meanwhile, that is the result."""
    _note(plan)
    result: Result | None = None

    def is_done() -> bool:
        return result is not None or (plan.resume != "force" and store.get(plan.key, plan.identity) is not None)

    with Claim(plan.folder, wait=plan.wait, on_wait=_waiting, done=is_done) as claim:
        if claim.held:
            try:
                result = _execute(plan)
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


def _note(plan: Plan) -> None:
    """Note where the run lies; an earlier failure is forgotten."""
    if plan.request:
        entry = Entry(overrides=plan.overrides, path=folder_of(plan.root, plan.key))
        Ledger(plan.root).write(plan.request, entry)


def _waiting(holder: Mapping[str, Any]) -> None:
    """Say who computes the run, at once and then every ten minutes."""
    if holder["waited"] % 600 < 10:
        print(f"waiting for {describe(holder)}, which computes this run", flush=True)


def _execute(plan: Plan) -> Result:
    """Train all phases and record the result; the tracker's run ends when that is done, or fails with it."""
    with _logger(plan.config, plan.key) as logger:
        return _train(plan, logger)


def _train(plan: Plan, logger: Any) -> Result:
    """Train all phases and record the result; the only part that needs torch."""
    import torch

    from headwise.backbone import BackboneSpec
    from headwise.data.vtab import VTABDataModule
    from headwise.fitting import rehearse
    from headwise.methods.base import Method
    from headwise.plots import learning_curves, score_map
    from headwise.portions import more_parts
    from headwise.training import TENSORS, Machine, chain, hush, run_phases

    hush()
    config, protocol = plan.config, plan.protocol
    is_gpu = config["trainer"]["accelerator"] == "gpu"
    gpu = _gpu(torch.cuda.device_count()) if is_gpu else 0
    seen = torch.cuda.get_device_name(gpu) if torch.cuda.is_available() else None
    if plan.auto and not is_gpu and seen is not None:
        raise ConfigError(
            f"trainer=auto: this system shows no NVIDIA GPU in {DEVICES}, but torch can use one ({seen}); "
            "say which it is to be: trainer=gpu or trainer=cpu"
        )
    device = seen if is_gpu else None
    versions, git = provenance.versions(), provenance.git_state(Path(__file__).parent)
    machine = provenance.machine(device or config["trainer"]["accelerator"], config["trainer"]["threads"])
    made = {"git": git, "torch": versions["torch"], "device": device or machine["cpu"]}
    print(f"run: {plan.folder}", flush=True)
    place = device or f"CPU, {machine['cpu'] or 'of unknown kind'}"
    print(f"device: {place}{' (trainer=auto)' if plan.auto else ''}", flush=True)
    with instantiation():
        method = instantiate(config["method"], _convert_="all")
        check_made("method", config["method"], isinstance(method, Method))
        spec = BackboneSpec(**config["backbone"])
    folder = plan.folder
    atomic.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    shutil.rmtree(folder / AGAIN, ignore_errors=True)
    shared = PhaseStore(plan.root)
    store = PhaseStore(folder / AGAIN) if plan.resume == "force" else shared
    methods = method.phases()
    found = None
    told: set[str] = set()

    def say(line: str) -> None:
        print(line, flush=True)

    def train(methods: Sequence[Method], protocol: Protocol, logger: Any) -> Trained:
        parts = 1
        while True:
            try:
                return once(methods, protocol, logger, parts)
            except Exception as error:
                parts = more_parts(error, parts, protocol.batch_size)
            size = -(-protocol.batch_size // parts)
            say(f"out of memory: going on with at most {size} images at a time, {protocol.batch_size} a step as before")

    def once(methods: Sequence[Method], protocol: Protocol, logger: Any, parts: int) -> Trained:
        if spec.must_fetch:  # what cannot work is refused before hundreds of megabytes are asked for
            rehearsal = spec.random().build()
            rehearsal.new_head(plan.task.num_classes)
            rehearse(rehearsal, methods)
        net = spec.build(protocol.drop_path)
        for note in net.notes:
            if note not in told:
                say(f"{Path(spec.weights).name}: {note}")
        told.update(net.notes)
        options = protocol.data_options(net.mean, net.std)
        options["eval_batch_size"] = -(-options["eval_batch_size"] // parts)
        data = VTABDataModule(plan.task, plan.source, net.img_size, seed=config["seed"], **options)
        where = Machine(
            accelerator=config["trainer"]["accelerator"],
            threads=config["trainer"]["threads"],
            attention=config["trainer"]["attention"],
            progress=config["trainer"]["progress"],
            logger=logger,
            parts=parts,
            gpu=gpu,
            made=made,
        )
        ground = plan.ground(protocol)
        seed = config["seed"]
        phases = run_phases(net, methods, data, protocol, store, ground, seed=seed, machine=where, say=say)
        return net, data, phases

    def attempt(methods: Sequence[Method]) -> PhaseResult:
        trial = protocol.for_search()
        address = chain(methods, plan.ground(trial), trial.epochs)[-1].phase
        return store.finished(address) or train(methods, trial, None)[2][-1]

    methods, scouted = explore(methods, attempt, say)
    space = None if protocol.search is None else Space.of(protocol.search).within(methods[-1])
    if space is not None:
        found = search(methods, space, attempt, say)
        methods = tuple(found.methods)
    net, data, phases = train(methods, protocol, logger)
    for index, facts in scouted.items():
        phases[index] = replace(phases[index], extra={**phases[index].extra, **facts})
    if found is not None:
        phases[-1] = replace(phases[-1], extra={**phases[-1].extra, "search": found.report()})
    if store is not shared:
        shared.adopt(store)
        store = shared
    for index, phase in enumerate(phases, start=1):
        _link(store.path(phase.fingerprint) / TENSORS, folder / f"phase-{index}.safetensors")
    histories = [store.path(phase.fingerprint) / "metrics.csv" for phase in phases]
    labels, draw = [phase.label for phase in phases], config["logger"].get("pictures", True)
    learning_curves(histories, labels, folder, draw)
    score_map([phase.extra.get("heads") for phase in phases], labels, folder, draw)
    in_parts = ["batches in parts"] if any(phase.extra.get("batch_parts") for phase in phases) else []
    result = Result(
        key=plan.key,
        identity=plan.identity,
        phases=phases,
        config=config,
        labels=list(
            dict.fromkeys(
                [*spec.labels, *plan.source.labels(plan.task), *protocol.labels, *preset_labels(config), *in_parts]
            )
        ),
        provenance={
            "weights": {**net.provenance, "content": plan.identity["backbone"]["weights"]},
            "data": data.provenance(),
            "protocol": config["protocol"],
        },
        versions=versions,
        git=git,
        machine=machine,
        request=plan.request,
    )
    ResultStore(plan.root).put(plan.key, result)
    return result


def _gpu(count: int) -> int:
    """Which of the GPUs that this process sees: joblib's processes take them in turn, any other job has the first."""
    if not HydraConfig.initialized() or "joblib" not in str(HydraConfig.get().launcher.get("_target_", "")):
        return 0
    return int(HydraConfig.get().job.num) % max(count, 1)


def _link(source: Path, target: Path) -> None:
    """Put a phase's tensors into the run's folder, sharing the disk blocks where the file system can."""
    with atomic.replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def summary(result: Result, others: Iterable[Result] = ()) -> str:
    """A small table of what each phase reached and gained, and what the run's controls say.

    Args:
        result: to be shown.
        others: controls are sought here.
    """
    lines = [
        f"{result.key.method} on {result.key.dataset}, seed {result.key.seed}"
        + (f" [{', '.join(result.labels)}]" if result.labels else ""),
        f"{'phase':<28}{'accuracy':>10}{'gain':>8}{'tunable':>13}{'head':>9}{'stored':>15}{'seconds':>10}",
    ]
    before: float | None = None
    for index, phase in enumerate(result.phases, start=1):
        gain = "" if before is None or phase.accuracy is None else f"{phase.accuracy - before:+.2f}"
        accuracy = "-" if phase.accuracy is None else f"{phase.accuracy:.2f} %"
        stored = f"{phase.stored_bytes:,} B"
        lines.append(
            f"{f'{index} {phase.label}':<28}{accuracy:>10}{gain:>8}{phase.num_tunable:>13,}{phase.num_head:>9,}"
            f"{stored:>15}{phase.seconds:>10.1f}"
        )
        before = phase.accuracy
    return "\n".join(map(cells.one_line, [*lines, *_measured(result, others)]))


def _measured(result: Result, others: Iterable[Result]) -> list[str]:
    """What a head-wise run gains over its controls, and how to make those that are missing.

    Per-head updates alone are a choice of method: of them no control is asked for, but shown if it is there.
    """
    claims = controls_of(result)
    found = {match.against: match.value for match in matches([result], others)}
    lines = []
    for claim, controls in claims.items():
        for kind, how in controls.items():
            if kind in found:
                lines.append(f"{found[kind]:>+8.2f}  {kind} ({KINDS[kind]})")
            elif claim != HEADS:
                lines.append(f"{'?':>8}  {kind} ({KINDS[kind]}; not run with these options: {how})")
    if not lines:
        return []
    more = "The second phase also brings training and parameters. " if PHASE in claims else ""
    return [f"{more}Percentage points over its controls, same seed:", *lines]


def job(cfg: DictConfig) -> float | None:
    """`run` as hydra calls it, which would print an error of its own in front of ours."""
    try:
        return run(cfg)
    except Exception as error:
        raise Failed from error
