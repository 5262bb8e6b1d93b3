"""A phase on paper and on disk: what it stands on, its content address, its files. No training happens here."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed, Method
from headwise.network.backbone import Backbone
from headwise.results.fingerprint import METHOD_FILES, fingerprint
from headwise.results.store import PhaseResult
from headwise.storage import atomic
from headwise.storage.claims import BusyError, Claim
from headwise.storage.hashes import file_sha256
from headwise.training.progress import History, Tell

CHECKPOINT = "last.ckpt"
TENSORS = "phase.safetensors"
PERIOD = 30.0
"""Seconds of training that a run may lose when it is killed."""
SHARE = 0.02
"""Of the time that may be spent on checkpoints, as long as no more than `PERIOD` can be lost."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a phase is computed.

    Attributes:
        accelerator: cpu or gpu.
        threads: CPU threads; part of a number's identity, since sums depend on their order.
        attention: how it is computed, see `Backbone.set_attention`; part of a number's identity like the threads.
        checkpointing: see `Backbone.set_checkpointing`; changes no number.
        compile: whether training runs in `Backbone.compiled`; part of a number's identity, since sums change order.
        progress: whether a bar or lines tell how far it is.
        tell: told of each epoch, with the number of its phase, from 1, and its row of `History`; or None.
        parts: in which a batch is computed where it does not fit the memory whole.
        gpu: number of the GPU, of those that this process sees.
        made: with what code and on what a phase is trained, plain data for its record.
    """

    accelerator: str = "cpu"
    threads: int = 2
    attention: str = "timm"
    checkpointing: bool = False
    compile: bool = False
    progress: bool = True
    tell: Tell | None = None
    parts: int = 1
    gpu: int = 0
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where tensors lie; ConfigError for a gpu that torch cannot use."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError(
                f"trainer.accelerator=gpu, but torch {torch.__version__} finds no GPU it can use (driver, "
                "CUDA_VISIBLE_DEVICES, a torch built without CUDA?); trainer.accelerator=cpu computes without one"
            )
        return torch.device("cuda", self.gpu) if self.accelerator == "gpu" else torch.device("cpu")

    def place(self, net: Backbone, precision: str) -> Backbone:
        """Bring a network here; float32 is then multiplied as TF32 on a GPU if `precision` is tf32, else as it is."""
        # convolutions have a switch of their own, which torch turns on by itself
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        return net.to(self.device)

    @property
    def devices(self) -> int | list[int]:
        """The device as Lightning wants it: GPU numbers, or one CPU."""
        return [self.gpu] if self.accelerator == "gpu" else 1

    def caution(self, precision: str) -> str | None:
        """What to say of a precision that this machine computes slowly; None where there is nothing to say."""
        if precision != "bf16" or self.accelerator != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        return (
            "note: this processor has no bf16 arithmetic and imitates it; protocol.precision=fp32 is many times faster"
        )


@dataclass(kw_only=True)
class PhaseRun:
    """One phase of one run: what it stands on, and where its files go."""

    index: int
    num_phases: int
    method: Method
    fingerprint: str
    folder: Path
    seed: int
    trunk: str | None = None
    is_foreign: bool = False
    """Whether it is another task's, taken from a file: its classifier is left out, and it is not tested."""

    @property
    def seed_parts(self) -> tuple[int | str, ...]:
        """Root of every random number of the phase."""
        return (self.seed, "phase", self.index)

    @property
    def title(self) -> str:
        """How the phase is called in what is said of it."""
        return f"phase {self.index + 1}/{self.num_phases} {self.method.label}"


class Address(NamedTuple):
    """Where a phase is stored, and where the first part of it that it shares with others (`Method.trunk`)."""

    phase: str
    trunk: str | None


def chain(methods: Sequence[Method], ground: Mapping[str, Any], protocol_epochs: int) -> list[Address]:
    """Content addresses of the phases: each covers the phase before it, its method, and the common ground.

    The ground is network, weights, data, protocol, seed and threads, as plain data. A method without epochs of its own
    takes `protocol_epochs`.
    """
    previous = ""
    addresses = []
    for index, method in enumerate(methods):
        epochs = method.epochs or protocol_epochs
        spec = method.spec()
        # the path says nothing of what it holds: the file's content is what makes the phase another one
        spec |= {name: file_sha256(spec[name]) for name in METHOD_FILES if spec.get(name)}
        # with the address of the phase before in it, whatever changes one phase moves all that follow
        link = {"previous": previous, "index": index, "ground": dict(ground)}
        trunk = method.trunk(epochs)
        shared = None
        if trunk is not None:
            trunk_spec, warmup = trunk
            shared = fingerprint({**link, "method": {**trunk_spec, "epochs": epochs}, "trunk": warmup})
        previous = fingerprint({**link, "method": {**spec, "epochs": epochs}})
        addresses.append(Address(previous, shared))
    return addresses


def warmup_record(
    run: PhaseRun, installed: Installed, history: History, spec: Mapping[str, Any], epochs: int, steps: int
) -> PhaseResult:
    """The record of a warm-up that several phases continue; it is not tested."""
    return PhaseResult(
        label=f"{run.method.label} warm-up",
        accuracy=None,
        epochs=epochs,
        steps=steps,
        method=dict(spec),
        **costs(installed, history),
    )


def costs(installed: Installed, history: History) -> dict[str, Any]:
    """What the record of a phase and of a warm-up say alike: sizes, time, the last epoch's loss."""
    return {
        "num_tunable": sum(tensor.numel() for tensor in installed.adapter().values()),
        "num_head": sum(tensor.numel() for tensor in installed.head().values()),
        "stored_bytes": installed.stored_bytes(),
        "seconds": history.seconds,
        "train_loss": history.rows[-1]["train_loss"] if history.rows else None,
    }


def read_tensors(
    file: Path, hint: str = "delete its folder and run again", sha256: str | None = None
) -> dict[str, Tensor]:
    """Tensors of a safetensors file, compared with the `sha256` of its record where there is one.

    CheckpointError, ending in `hint`, if it is missing, damaged, or another file than its record speaks of.
    """
    try:
        if sha256 is None:
            return load_file(str(file))
        content = file.read_bytes()  # read once: what is compared is what is used
        tensors, actual = load(content), hashlib.sha256(content).hexdigest()
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read ({error}); {hint}") from error
    if actual == sha256:
        return tensors
    raise CheckpointError(
        f"{file} is not the file that its record speaks of, or damaged: sha256 {actual[:16]}, recorded {sha256[:16]}; "
        f"{hint}"
    )


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically, `metadata` in its header; returns the sha256 of its content."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(whole, None if metadata is None else dict(metadata))
    with atomic.replacing(file) as part:
        part.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def set_aside(file: Path) -> str | None:
    """Rename a checkpoint that cannot be resumed from to ``<name>.damaged``, and say why; None where it is sound.

    The archive's own checksums are compared, since torch does not look at them, so one flipped bit is noticed as well.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken} differs")
        # a sound archive may still be none that torch can read
        torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever zip, zlib, struct, pickle and torch raise for bytes that are not theirs
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        why = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{file} is damaged ({why}), now {aside.name}"
    return None


class Saver(L.Callback):
    """Writes the checkpoint of a finished epoch, in place of the one before, atomically.

    Of epochs that are over in no time not all are written: a killed run repeats `PERIOD` seconds at most, and less
    where a checkpoint is quickly written. The last epoch's always is.
    """

    def __init__(self, file: Path, claim: Claim) -> None:
        self.file, self.claim = file, claim
        self._next = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, a crash leaving what was there; BusyError if another process took the phase over meanwhile."""
        # two processes that write one checkpoint by turns would mix their epochs
        if self.claim.lost:
            raise BusyError(
                f"{self.file.parent} was taken over by another process while this one stood still; it goes on there"
            )
        start = time.monotonic()
        is_last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs
        if start < self._next and not is_last:
            return
        with atomic.replacing(self.file) as part:
            trainer.save_checkpoint(part)
        end = time.monotonic()
        # saving may take its share of the time: after t seconds of it come t / SHARE of training
        self._next = end + min(PERIOD, (end - start) / SHARE)
