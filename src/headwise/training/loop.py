"""Training: the loop over phases joined by merges. What happens within one is in `headwise.training.phase`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from headwise.data.vtab import VTABDataModule
from headwise.errors import CheckpointError
from headwise.methods._fitting import rehearse
from headwise.methods.base import Installed, Method
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.curve import CURVE, read_curve
from headwise.results.store import PhaseResult, PhaseStore
from headwise.training.address import CHECKPOINT as CHECKPOINT
from headwise.training.address import TENSORS as TENSORS
from headwise.training.address import Machine as Machine
from headwise.training.address import PhaseRun as PhaseRun
from headwise.training.address import Saver as Saver
from headwise.training.address import chain as chain
from headwise.training.address import read_tensors as read_tensors
from headwise.training.address import set_aside as set_aside
from headwise.training.address import write_tensors as write_tensors
from headwise.training.mechanism import Follower
from headwise.training.module import PhaseModule as PhaseModule
from headwise.training.module import reseed as reseed
from headwise.training.phase import GIVEN as GIVEN
from headwise.training.phase import Work, train_phase, waiting
from headwise.training.phase import restore as restore
from headwise.training.progress import hush as hush
from headwise.updates.masking import REPORTED


def run_phases(
    net: Backbone,
    methods: Sequence[Method],
    data: VTABDataModule,
    protocol: Protocol,
    store: PhaseStore,
    ground: Mapping[str, Any],
    *,
    seed: int,
    machine: Machine,
    say: Callable[[str], None] = print,
    follow: bool = False,
    foreign: int = 0,
) -> list[PhaseResult]:
    """Train each phase on the merged result of the one before; a phase that the store holds is loaded and merged.

    Args:
        net: pretrained, without head.
        methods: the phases.
        data, protocol, store, machine, say: see `headwise.training.phase.Work`.
        ground: see `chain`.
        seed: of the run.
        follow: whether the records say where the phases' updates lie, see `headwise.training.mechanism`.
        foreign: leading phases that were trained on another task.

    Returns:
        One record per phase. Afterwards `net` carries all of them, merged.
    """
    if (caution := machine.caution(protocol.precision)) is not None:
        say(caution)
    torch.set_num_threads(machine.threads)
    net.set_attention(machine.attention)
    if machine.checkpointing:
        net.set_checkpointing()
    # the head of a seed is the same for every method: comparisons by seed are then paired
    reseed(seed, "head")
    net.new_head(data.task.num_classes)
    machine.place(net, protocol.precision)
    data.place(machine.device)
    # a second phase that does not fit is refused now, not after the hours that the first one trains
    rehearse(net, methods, first=False)
    work = Work(net=net, data=data, protocol=protocol, store=store, machine=machine, say=say)
    follower = Follower(net) if follow else None
    results = []
    for index, (method, address) in enumerate(zip(methods, chain(methods, ground, protocol.epochs), strict=True)):
        run = PhaseRun(
            index=index,
            num_phases=len(methods),
            method=method,
            fingerprint=address.phase,
            folder=store.path(address.phase),
            seed=seed,
            trunk=address.trunk,
            is_foreign=index < foreign,
        )
        result = _trained_or_taken(work, run)
        results.append(result if follower is None else follower.noted(net, result))
    return results


def _trained_or_taken(work: Work, run: PhaseRun) -> PhaseResult:
    """Train a phase under its claim, or take it from the store; either way it is merged into the network."""
    with work.store.claim(run.fingerprint, on_wait=lambda holder: waiting(holder, work.say)) as claim:
        if claim.held:
            return train_phase(work, run, claim)
    finished = work.store.finished(run.fingerprint)
    if finished is None:
        raise CheckpointError(f"phase {run.fingerprint} was finished a moment ago and cannot be read now; run again")
    work.say(f"{run.title}: already trained, taken from {run.fingerprint}")
    if work.machine.tell is not None:
        curve = run.folder / CURVE  # a phase that was taken from a file has none
        for row in read_curve(curve) if curve.is_file() else ():
            work.machine.tell(run.index + 1, row)
    installed = restore(run, work.net, finished)
    asked = _as_asked(finished, run.method, installed)
    installed.merge()
    return asked


def _as_asked(finished: PhaseResult, method: Method, installed: Installed) -> PhaseResult:
    """The record of a stored phase as this method would have written it.

    Methods that differ in a gate that does nothing share a phase; what a record says of the gate is the method's own.
    """
    gate = method.gating()
    if (gate is None and not finished.gate) or (gate is not None and gate.effective() is not None):
        return finished
    told = {} if installed.masking is None else installed.masking.report()
    extra = {name: value for name, value in finished.extra.items() if name not in REPORTED} | told
    return replace(finished, label=method.label, extra=extra, active_heads=told.get("active_heads"))
