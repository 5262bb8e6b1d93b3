"""Training: the loop over phases joined by merges."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from headwise import atomic
from headwise.backbone import Backbone
from headwise.data.vtab import VTABDataModule
from headwise.errors import CheckpointError
from headwise.fitting import fitted, fitting, rehearse
from headwise.gating import REPORTED
from headwise.loops import attended
from headwise.methods.base import Batches, Installed, Method, Plan
from headwise.phasemodule import PhaseModule as PhaseModule
from headwise.phasemodule import reseed as reseed
from headwise.phases import (
    CHECKPOINT,
    TENSORS,
    Machine,
    PhaseRun,
    Saver,
    chain,
    read_tensors,
    set_aside,
    warmup_record,
    write_tensors,
)
from headwise.portions import split
from headwise.progress import History, Progress
from headwise.progress import hush as hush
from headwise.protocol import PRECISIONS, Protocol
from headwise.results.claims import Claim, describe
from headwise.results.store import PhaseResult, PhaseStore
from headwise.selection import TestSelection

STORED = "delete its folder and run again"
AGAIN = "train the run again with resume=force"
GIVEN = "a checkpoint is a saved phase; scripts/import_cara.py and scripts/import_bilora.py make one of published files"


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
) -> list[PhaseResult]:
    """Train each phase on the merged result of the one before; a phase that the store holds is loaded and merged.

    Args:
        net: pretrained, without head.
        methods: the phases.
        data: the task's images.
        protocol: recipe and selection.
        store: of finished phases.
        ground: see `chain`.
        seed: of the run.
        machine: where to compute.
        say: told what happens.

    Returns:
        One record per phase. Afterwards `net` carries all of them, merged.
    """
    if (caution := machine.caution(protocol.precision)) is not None:
        say(caution)
    torch.set_num_threads(machine.threads)
    net.set_attention(machine.attention)
    reseed(seed, "head")
    net.new_head(data.task.num_classes)
    machine.place(net)
    rehearse(net, methods, first=False)
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
        )
        with store.claim(address.phase, on_wait=lambda holder: _waiting(holder, say)) as claim:
            if claim.held:
                results.append(_train(run, net, data, protocol, store, machine, say, claim))
                continue
        finished = store.finished(address.phase)
        if finished is None:
            raise CheckpointError(f"phase {address.phase} was finished a moment ago and cannot be read now; run again")
        say(f"phase {index + 1}/{len(methods)} {method.label}: already trained, taken from {address.phase}")
        installed = restore(run, net, finished)
        results.append(_as_asked(finished, method, installed))
        installed.merge()
    return results


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


def _waiting(holder: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say who trains the phase, at once and then every ten minutes."""
    if holder["waited"] % 600 < 10:
        say(f"waiting for {describe(holder)}, which trains this phase")


def restore(run: PhaseRun, net: Backbone, finished: PhaseResult, file: Path | None = None) -> Installed:
    """Install a finished phase in `net` from its tensors: the store's, or those that lie in a run's folder as `file`.

    Raises:
        CheckpointError: if its tensors are missing, damaged, not those of the record, or do not fit.
    """
    hint = STORED if file is None else f"another copy may lie in phases/{finished.fingerprint}; or {AGAIN}"
    tensors = read_tensors(file or run.folder / TENSORS, hint, finished.sha256)
    reseed(*run.seed_parts, "install")
    installed = run.method.install(net, finished.extra.get("plan"))
    installed.unpack(tensors)
    return installed


def _train(
    run: PhaseRun,
    net: Backbone,
    data: VTABDataModule,
    protocol: Protocol,
    store: PhaseStore,
    machine: Machine,
    say: Callable[[str], None],
    claim: Claim,
) -> PhaseResult:
    """Install, fit (from the last finished epoch if there is one), test once, save, merge."""
    method = run.method
    epochs = 0 if method.checkpoint else method.epochs or protocol.epochs
    data.start_phase(run.index)
    steps_per_epoch = len(data.train_dataloader())
    total = epochs * steps_per_epoch
    plan = _plan(run, net, data, total)
    reseed(*run.seed_parts, "install")
    installed = fitted(method, net, plan)
    module = PhaseModule(
        net,
        installed,
        protocol,
        data.preprocess,
        num_classes=data.task.num_classes,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        seed_parts=run.seed_parts,
        lr=method.lr,
        batches=_batches(net, data, machine.parts),
        parts=machine.parts,
    )
    title = f"phase {run.index + 1}/{run.num_phases} {method.label}"
    checkpoint = run.folder / CHECKPOINT

    first = installed.final_from(epochs, steps_per_epoch) if epochs and protocol.select == "best_test" else 1
    selection = TestSelection(data, protocol, first)

    def fit(folder: Path, last: int, what: str, claim: Claim) -> tuple[L.Trainer, History]:
        folder.mkdir(parents=True, exist_ok=True)
        history = History(folder)
        bars = [Progress(what, last, say)] if machine.progress else []
        trainer = L.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices,
            precision=PRECISIONS[protocol.precision],  # type: ignore[arg-type]
            max_epochs=last,
            logger=machine.logger or False,
            callbacks=[history, *bars, *installed.callbacks(), selection, Saver(folder / CHECKPOINT, claim)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=protocol.clip,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        if (why := set_aside(folder / CHECKPOINT)) is not None:
            say(f"{what}: {why}; it starts again from its beginning")
        resume = str(folder / CHECKPOINT) if (folder / CHECKPOINT).is_file() else None
        if resume:
            say(f"{what}: resuming after its last finished epoch")
        with attended(trainer, net):
            trainer.fit(module, data.train_dataloader(), ckpt_path=resume, weights_only=True)
        return trainer, history

    trunk = None if method.checkpoint else method.trunk(epochs)
    if trunk is not None and run.trunk is not None and not checkpoint.is_file():
        spec, warmup = trunk
        source = store.path(run.trunk) / CHECKPOINT
        with store.claim(run.trunk, on_wait=lambda holder: _waiting(holder, say)) as shared:
            if shared.held:
                _, history = fit(source.parent, warmup, f"{title} warm-up", shared)
                store.finish(run.trunk, warmup_record(run, installed, history, spec, warmup, warmup * steps_per_epoch))
            else:
                say(f"{title}: its warm-up is already trained, taken from {run.trunk}")
        if (why := set_aside(source)) is not None:
            say(f"{title}: {why}; the warm-up is trained again")
        if source.is_file():
            run.folder.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(checkpoint) as part:
                shutil.copyfile(source, part)
    trainer, history = fit(run.folder, epochs, title, claim)
    if method.checkpoint is None:
        tensors = selection.best or installed.packed()
    else:
        say(f"{title}: taken from {Path(method.checkpoint).name}, not trained")
        tensors = read_tensors(Path(method.checkpoint), GIVEN)
    installed.unpack(tensors)  # what is tested and merged is what is stored
    with attended(trainer, net):
        (outcome,) = trainer.test(module, data.test_dataloader(), verbose=False)
    digest = write_tensors(run.folder / TENSORS, tensors)
    result = PhaseResult(
        label=method.label,
        accuracy=outcome["test_accuracy"],
        num_tunable=sum(t.numel() for t in installed.adapter().values()),
        num_head=sum(t.numel() for t in installed.head().values()),
        stored_bytes=installed.stored_bytes(),
        seconds=history.seconds,
        num_test=len(data.test_dataloader().labels),
        images_per_second=history.images / history.seconds if history.seconds else None,
        peak_memory=history.peak_memory,
        epochs=epochs,
        steps=total,
        active_heads=installed.report().get("active_heads"),
        method=method.spec(),
        fingerprint=run.fingerprint,
        sha256=digest,
        train_loss=history.rows[-1]["train_loss"] if history.rows else None,
        extra={
            "plan": plan,
            **({"made": dict(machine.made)} if machine.made else {}),
            "warmup_steps": protocol.warmup_count(total),
            **({"batch_parts": machine.parts} if machine.parts > 1 else {}),
            **installed.report(),
            **selection.report(),
        },
    )
    store.finish(run.fingerprint, result)
    checkpoint.unlink(missing_ok=True)
    images = "test images" if data.eval_split == "test" else f"images of {data.eval_split}"
    taken = f" (epoch {selection.epoch} of {epochs})" if selection.epoch else ""
    say(f"{title}: {result.accuracy:.2f} % of {result.num_test} {images}{taken}, {result.num_tunable:,} parameters")
    installed.merge()
    return result


def _batches(net: Backbone, data: VTABDataModule, parts: int = 1) -> Batches:
    """The training set as the network takes it, every image once."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        device = next(net.parameters()).device
        for batch in data.train_batches(shuffle=False):
            for images, labels, _ in split(batch, parts):
                yield data.preprocess(images.to(device)), labels.to(device)

    return batches


def _plan(run: PhaseRun, net: Backbone, data: VTABDataModule, num_steps: int) -> Plan | None:
    """What the method found out before it was installed."""
    reseed(*run.seed_parts, "prepare")
    with fitting(net, run.method):
        return run.method.prepare(net, _batches(net, data), num_steps)
