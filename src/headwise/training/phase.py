"""One phase, step by step: prepare, warm up, fit, test, store, merge."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from headwise.data.vtab import VTABDataModule
from headwise.methods._fitting import fitted, fitting
from headwise.methods.base import Batches, Installed, Plan
from headwise.network.backbone import Backbone
from headwise.network.portions import split
from headwise.protocol.recipe import PRECISIONS, Protocol
from headwise.results.classes import CONFUSION, measures, reached, write_confusion
from headwise.results.records import PRECISION
from headwise.results.store import PhaseResult, PhaseStore
from headwise.storage import atomic
from headwise.storage.claims import Claim, describe
from headwise.training.address import (
    CHECKPOINT,
    TENSORS,
    Machine,
    PhaseRun,
    Saver,
    costs,
    read_tensors,
    set_aside,
    warmup_record,
    write_tensors,
)
from headwise.training.consistency import Disturbed
from headwise.training.features import Inputs, are_fixed, inputs
from headwise.training.machine import attended
from headwise.training.module import PhaseModule, number_of, reseed
from headwise.training.progress import History, Progress
from headwise.training.selection import TestSelection
from headwise.training.utilisation import flops_per_image, peak_of, utilisation
from headwise.updates.consistency import Consistency

STORED = "delete its folder and run again"
AGAIN = "train the run again with resume=force"
GIVEN = "a checkpoint is a saved phase; scripts/import_cara.py and scripts/import_bilora.py make one of published files"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all phases of a run are trained with; `say` is told what happens.

    The network has its classifier, and carries the phases so far, merged.
    """

    net: Backbone
    data: VTABDataModule
    protocol: Protocol
    store: PhaseStore
    machine: Machine
    say: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PreparedPhase:
    """A phase whose method is installed in the network, with the plan that the method had made before.

    `selection` is that of an epoch on the test set.
    """

    plan: Plan | None
    installed: Installed
    module: PhaseModule
    selection: TestSelection


class Fitted(NamedTuple):
    """A phase after its last epoch: what trained it, its curve, what it was trained and is tested on, and its cost.

    `flops` are those of a training image, counted only where the device's peak is known.
    """

    trainer: L.Trainer
    history: History
    inputs: Inputs
    flops: float | None


def train_phase(work: Work, run: PhaseRun, claim: Claim) -> PhaseResult:
    """Train one phase (from its last saved epoch if there is one), test it once, store it, merge it."""
    phase = _prepare(work, run)
    _warm_up(work, run, phase)
    fitted = _fit(work, phase, run, run.folder, phase.module.epochs, run.title, claim)
    # what is tested is what is stored and merged: the tensors are taken once, before the test
    tensors = _final_tensors(work, run, phase)
    accuracy = None if run.is_foreign else _test(work, phase, fitted, tensors)
    if run.is_foreign:
        phase.installed.unpack(tensors)
    result = _store(work, run, phase, fitted, tensors, accuracy)
    phase.installed.merge()
    return result


def _prepare(work: Work, run: PhaseRun) -> PreparedPhase:
    """Let the method look at network and data, install it, and set up what trains it."""
    method, protocol, data = run.method, work.protocol, work.data
    epochs = 0 if method.checkpoint else method.epochs or protocol.epochs
    # the order of images and their augmentation follow from seed and phase, not from what trained before
    data.start_phase(run.index)
    steps_per_epoch = len(data.train_dataloader())
    # each step draws from a seed of its own, so that a method which looks at the data starts like one that does not
    reseed(*run.seed_parts, "prepare")
    with fitting(work.net, method):
        plan = method.prepare(work.net, _batches(work.net, data), epochs * steps_per_epoch)
    reseed(*run.seed_parts, "install")
    installed = fitted(method, work.net, plan)
    module = PhaseModule(
        work.net,
        installed,
        protocol,
        data.preprocess,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        seed_parts=run.seed_parts,
        lr=method.lr,
        cycles=method.cycles,
        batches=_batches(work.net, data, work.machine.parts),
        parts=work.machine.parts,
        consistency=_consistency(work, run, installed),
    )
    # heads or ranks that are still to go would be in the network of an earlier epoch: none of those may be chosen
    first = installed.final_from(epochs, steps_per_epoch) if epochs and protocol.select == "best_test" else 1
    return PreparedPhase(plan=plan, installed=installed, module=module, selection=TestSelection(protocol, first))


def _consistency(work: Work, run: PhaseRun, installed: Installed) -> Disturbed | None:
    """The network under noise, if the method asks for that."""
    recipe = Consistency.of(run.method.consistency)
    if recipe is None:
        return None
    return Disturbed(
        work.net,
        installed,
        recipe,
        # numbers of its own: what drops out is what drops out without noise
        seed=lambda epoch: number_of(*run.seed_parts, "noise", epoch),
        order=work.data.train_dataloader().order,
        batch_size=work.data.batch_size,
    )


def _warm_up(work: Work, run: PhaseRun, phase: PreparedPhase) -> None:
    """Put the checkpoint of the warm-up that the phase shares with others into its folder, trained here if need be.

    This is the warm-up before heads are scored, `headwise.updates.gate.Gate.warmup_epochs`, not that of the rate.
    """
    checkpoint, epochs = run.folder / CHECKPOINT, phase.module.epochs
    trunk = None if run.method.checkpoint else run.method.trunk(epochs)
    if trunk is None or run.trunk is None or checkpoint.is_file():
        return
    spec, warmup = trunk
    source = work.store.path(run.trunk) / CHECKPOINT
    with work.store.claim(run.trunk, on_wait=lambda holder: waiting(holder, work.say)) as shared:
        if shared.held:
            history = _fit(work, phase, run, source.parent, warmup, f"{run.title} warm-up", shared).history
            steps = warmup * phase.module.steps_per_epoch
            work.store.finish(run.trunk, warmup_record(run, phase.installed, history, spec, warmup, steps))
        else:
            work.say(f"{run.title}: its warm-up is already trained, taken from {run.trunk}")
    if (why := set_aside(source)) is not None:
        work.say(f"{run.title}: {why}; the warm-up is trained again")
    # each phase resumes from a copy of its own: several phases may go on from one warm-up at the same time
    if source.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(checkpoint) as part:
            shutil.copyfile(source, part)


def _fit(
    work: Work, phase: PreparedPhase, run: PhaseRun, folder: Path, epochs: int, title: str, claim: Claim
) -> Fitted:
    """Train up to epoch `epochs`, going on from the checkpoint in `folder` if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    tell = work.machine.tell and functools.partial(work.machine.tell, run.index + 1)
    history = History(folder, tell)
    bars = [Progress(title, epochs, work.say)] if work.machine.progress else []
    # the method's callbacks change the network before the selection measures it; the checkpoint has what both decided
    callbacks = [history, *bars, *phase.installed.callbacks(), phase.selection, Saver(checkpoint, claim)]
    trainer = L.Trainer(
        accelerator=work.machine.accelerator,
        devices=work.machine.devices,
        precision=PRECISIONS[work.protocol.precision],  # type: ignore[arg-type]
        max_epochs=epochs,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=work.protocol.clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    if (why := set_aside(checkpoint)) is not None:
        work.say(f"{title}: {why}; it starts again from its beginning")
    resume = str(checkpoint) if checkpoint.is_file() else None
    if resume:
        work.say(f"{title}: resuming after its last saved epoch")
    fed = inputs(run.method, phase.module, work.data, trainer, epochs)
    phase.selection.test = fed.test
    flops = None
    if epochs and fed.seconds is None and peak_of(work.machine.device, work.protocol.precision):
        flops = flops_per_image(phase.module, fed.train, trainer.precision_plugin.forward_context())
    is_compiled = work.machine.compile and not are_fixed(run.method, work.data.augment)  # a probe trains no block
    blocks = work.net.compiled() if is_compiled else contextlib.nullcontext()
    with attended(trainer, work.net), blocks:
        trainer.fit(phase.module, fed.train, ckpt_path=resume, weights_only=True)
    return Fitted(trainer, history, fed, flops)


def _final_tensors(work: Work, run: PhaseRun, phase: PreparedPhase) -> dict[str, Tensor]:
    """What is kept of the phase by name: of the chosen epoch, of the last one, or of the given checkpoint."""
    if run.method.checkpoint is None:
        return phase.selection.best or phase.installed.packed()
    work.say(f"{run.title}: taken from {run.method.checkpoint}, not trained")
    tensors = read_tensors(Path(run.method.checkpoint), GIVEN)
    if not run.is_foreign:
        return tensors
    own, other = (
        {name: tensor for name, tensor in held.items() if name.startswith("head.") == is_head}
        for held, is_head in ((phase.installed.packed(), True), (tensors, False))
    )
    return {**other, **own}


def _test(work: Work, phase: PreparedPhase, fitted: Fitted, tensors: Mapping[str, Tensor]) -> float:
    """Accuracy on the test images, percent, with exactly the tensors that are stored and merged."""
    phase.installed.unpack(tensors)
    with attended(fitted.trainer, work.net):
        (outcome,) = fitted.trainer.test(phase.module, fitted.inputs.test, verbose=False)
    return outcome["test_accuracy"]


def _store(
    work: Work,
    run: PhaseRun,
    phase: PreparedPhase,
    fitted: Fitted,
    tensors: Mapping[str, Tensor],
    accuracy: float | None,
) -> PhaseResult:
    """Write the tensors, then the record that makes them count, and say what was reached."""
    installed, machine, selection, epochs = phase.installed, work.machine, phase.selection, phase.module.epochs
    steps = epochs * phase.module.steps_per_epoch
    history, features = fitted.history, fitted.inputs.seconds
    seconds = history.seconds + (features or 0.0)
    peak = peak_of(machine.device, work.protocol.precision)
    mfu = utilisation(fitted.flops, peak, history.images, history.seconds)
    classes: dict[str, Any] = {}
    if accuracy is not None and phase.module.confusion is not None:
        confusion = phase.module.confusion.cpu().numpy()
        write_confusion(run.folder / CONFUSION, confusion)
        classes = {"classes": measures(confusion)}
    if accuracy is not None and phase.module.precisions:
        classes = {PRECISION: {"mean": accuracy, "classes": phase.module.precisions}}
    result = PhaseResult(
        label=run.method.label,
        accuracy=accuracy,
        **{**costs(installed, history), "seconds": seconds},
        num_test=None if accuracy is None else len(work.data.test_dataloader().labels),
        images_per_second=history.images / seconds if seconds else None,
        peak_memory=history.peak_memory,
        epochs=epochs,
        steps=steps,
        active_heads=installed.report().get("active_heads"),
        method=run.method.spec(),
        fingerprint=run.fingerprint,
        sha256=write_tensors(run.folder / TENSORS, tensors),
        extra={
            "plan": phase.plan,
            **({"made": dict(machine.made)} if machine.made else {}),
            "warmup_steps": work.protocol.warmup_count(steps // phase.module.cycles),
            **({"batch_parts": machine.parts} if machine.parts > 1 else {}),
            **({} if features is None else {"features": {"seconds": features}}),
            **({"mfu": mfu} if mfu else {}),
            **installed.report(),
            **selection.report(),
            **classes,
        },
    )
    work.store.finish(run.fingerprint, result)
    # the record is written: from here on the phase counts as finished, and nothing resumes from its checkpoint
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    if accuracy is None:
        return result
    images = "test images" if work.data.eval_split == "test" else f"images of {work.data.eval_split}"
    taken = f" (epoch {selection.epoch} of {epochs})" if selection.epoch else ""
    parameters = f"{result.num_tunable:,} parameters"
    work.say(f"{run.title}: {reached(result)} {result.num_test} {images}{taken}, {parameters}")
    return result


def restore(run: PhaseRun, net: Backbone, finished: PhaseResult, file: Path | None = None) -> Installed:
    """Install a finished phase in `net` from its tensors: the store's, or those that lie in a run's folder as `file`.

    Raises:
        CheckpointError: if its tensors are missing, damaged, not those of the record, or do not fit.
    """
    hint = STORED if file is None else f"another copy may lie in phases/{finished.fingerprint}; or {AGAIN}"
    tensors = read_tensors(file or run.folder / TENSORS, hint, finished.sha256)
    # as when it was trained, so that whatever `install` draws and no file holds is the same
    reseed(*run.seed_parts, "install")
    installed = run.method.install(net, finished.extra.get("plan"))
    installed.unpack(tensors)
    return installed


def waiting(holder: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say who trains the phase, at once and then every ten minutes."""
    if holder["waited"] % 600 < 10:
        say(f"waiting for {describe(holder)}, which trains this phase")


def _batches(net: Backbone, data: VTABDataModule, parts: int = 1) -> Batches:
    """The training set as the network takes it, (B, 3, S, S) and (B,) or (B, K), every image once."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        device = next(net.parameters()).device
        for batch in data.train_batches(shuffle=False):
            for images, labels, _ in split(batch, parts):
                yield data.preprocess(images.to(device)), labels.to(device)

    return batches
