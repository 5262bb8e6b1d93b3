"""A finished run as something to use: load it, export it as a plain timm network, test it again. Hydra is not needed.

Legend: B batch, C channels of an image (3, or 1 for grey tasks), K classes, S side of the square that the network sees.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headwise.artifacts.adapterfolder import is_adapted, is_peft, read_adapted
from headwise.artifacts.classifier import Classifier as Classifier
from headwise.artifacts.classifier import Guess as Guess
from headwise.artifacts.published import TOLERANCE, check_onnx, described, write_hub, write_onnx
from headwise.artifacts.saved import SavedRun, own_randomness
from headwise.data.sources import SyntheticSource
from headwise.data.vtab import VTABDataModule
from headwise.errors import CheckpointError, ConfigError, DataError
from headwise.methods.base import Installed
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import PRECISIONS, Protocol
from headwise.results.records import ACCURACY
from headwise.training.loop import Machine, PhaseModule, hush, write_tensors
from headwise.training.machine import attended

NUM_COMPARED = 32


def load(
    run_dir: str | Path,
    weights: str | Path | None = None,
    merged: bool | None = None,
    trust: str | Iterable[str] = (),
    model: nn.Module | str | None = None,
) -> Classifier:
    """Load a finished run, what `Adapted.save` wrote, or an adapter in peft's format; nothing of it is executed.

        net = headwise.load("outputs/runs/hs_lora/dsprites_loc/base/seed-0")
        net.classify("image.png")

    Args:
        run_dir: the folder that holds result.json, adapter.json or adapter_config.json.
        weights: file of the pretrained weights, if it is not where it was.
        merged: fold the updates into the weights; False leaves the last phase's beside them. None folds those of a run,
            and leaves an adapted network as it was saved, an `Adapted` that can go on training.
        trust: modules of your own, such as ``my_methods``, whose methods the record may name; they are imported.
        model: the network that was adapted, a timm module or a name, where the folder names none: after a module was
            given to `headwise.adapt`, and for peft's format.

    Raises:
        HeadwiseError: what is missing, damaged, not allowed, or not what the run was made with.
    """
    if isinstance(run_dir, str | Path) and (is_adapted(Path(run_dir)) or is_peft(Path(run_dir))):
        with own_randomness():
            adapted = read_adapted(Path(run_dir), model, weights, trust).eval()
            if not merged:
                return adapted
            adapted.installed.merge()
        return Classifier(adapted.net, adapted.task, adapted.preparation, spec=adapted.spec).eval()
    if model is not None:
        raise ConfigError(f"model belongs to a folder that Adapted.save wrote; {str(run_dir)[:300]!r} is none")
    saved = SavedRun.read(run_dir, trust)
    with own_randomness():
        net = saved.network(weights)
        # a phase is merged when the next one is asked for: the last one is still beside the weights
        *_, (_, installed) = saved.install(net)
        if merged is None or merged:
            installed.merge()
    return _classifier(saved, net)


def _classifier(saved: SavedRun, net: Backbone) -> Classifier:
    """A run's network, frozen, in evaluation mode, with all that belongs to it."""
    # only how the module prepares images is used; none is ever read from this source
    preparation = replace(saved.data(net, SyntheticSource()).preparation, shape=saved.shape)
    return Classifier(net.requires_grad_(False), saved.task, preparation, saved.result, saved.spec).eval()


@dataclass(frozen=True, kw_only=True)
class Export:
    """What `export_merged` wrote, and how near it is to what was trained.

    Attributes:
        file: the timm state dict; None where none was asked for.
        random_difference: largest difference of a logit on random input.
        real_difference: the same on test images of the run; None where they cannot be read.
        note: why not.
        metadata: what stands in the file's header under ``timm``.
        hub: the folder for the hub; None where none was asked for.
        onnx: the ONNX file; None where none was asked for.
        hub_difference, onnx_difference: of a logit on random input, of what timm and onnxruntime read of them.
    """

    file: str | None
    random_difference: float
    real_difference: float | None
    note: str
    metadata: dict[str, Any]
    hub: str | None = None
    onnx: str | None = None
    hub_difference: float | None = None
    onnx_difference: float | None = None


@torch.no_grad()
def export_merged(
    run_dir: str | Path,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    data_root: str | Path | None = None,
    trust: str | Iterable[str] = (),
    hub: str | Path | None = None,
    onnx: str | Path | None = None,
) -> Export:
    """Write a run for others: a state dict under timm's keys, a folder for the hub, an ONNX file; head included.

    The header's entry ``timm`` is JSON: ``model`` are the arguments of timm.create_model, ``transform`` those of
    timm.data.create_transform, ``class_names`` the classes. Before anything is written the file's tensors are loaded
    into timm's own network and its logits compared with those of the trained one, whose last phase is not merged.

    Args:
        run_dir, weights, trust: as for `load`.
        out: the .safetensors file to write.
        data_root: folder of the images, if it has moved.
        hub: the folder to write, see `headwise.artifacts.published.write_hub`.
        onnx: the .onnx file to write, see `headwise.artifacts.published.write_onnx`.

    Raises:
        CheckpointError: if a phase stays beside the weights, or the two networks disagree.
        ConfigError: if nothing is to be written, or ONNX cannot be.
    """
    saved = SavedRun.read(run_dir, trust)
    _check_asked(out, hub, onnx)
    with own_randomness():
        net = saved.network(weights)
        *_, (_, installed) = saved.install(net)
    batches, note = _batches(saved, net, data_root)
    # with the last phase beside the weights, as it was trained: merging and the change of keys are what is tested
    before = [net(batch) for batch in batches]
    installed.merge()
    # ONNX can hold a method that stays in place; timm cannot
    state = None if out is None and hub is None else net.export_state_dict()
    read = net if state is None else _as_timm(saved, state)
    apart = _differences(read, batches, before)
    classifier = _classifier(saved, net)
    metadata = {
        **described(classifier),
        "run": {"fingerprint": saved.result.fingerprint, "labels": saved.result.labels},
    }
    if out is not None and state is not None:
        write_tensors(Path(out), state, {"format": "pt", "timm": json.dumps(metadata)})
    return Export(
        file=None if out is None else str(out),
        random_difference=apart[0],
        real_difference=apart[1] if len(apart) > 1 else None,
        note=note,
        metadata=metadata,
        hub=None if hub is None else str(hub),
        onnx=None if onnx is None else str(onnx),
        hub_difference=None if hub is None else write_hub(classifier, hub),
        onnx_difference=None if onnx is None else write_onnx(classifier, onnx),
    )


def _differences(read: nn.Module, batches: Sequence[Tensor], before: Sequence[Tensor]) -> list[float]:
    """Largest difference of a logit by batch; refused if one is more than rounding."""
    apart = [float((read(batch) - logits).abs().max()) for batch, logits in zip(batches, before, strict=True)]
    # not `>`, which a NaN would pass
    if not max(apart) <= TOLERANCE:
        raise CheckpointError(
            f"exported and trained network differ by {max(apart):.3g} in a logit; nothing was written"
        )
    return apart


def _batches(saved: SavedRun, net: Backbone, data_root: str | Path | None) -> tuple[list[Tensor], str]:
    """Images on which networks are compared, random ones and the run's own, and why those are missing."""
    generator = torch.Generator().manual_seed(0)
    random_batch = torch.randn(NUM_COMPARED, 3, net.img_size, net.img_size, generator=generator)
    real_batch, note = _real_batch(saved, net, data_root)
    return [random_batch] if real_batch is None else [random_batch, real_batch], note


def _as_timm(saved: SavedRun, state: dict[str, Tensor]) -> nn.Module:
    """timm's own network of a run with these weights."""
    plain = saved.spec.plain(saved.task.num_classes).eval()
    try:
        plain.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the merged network does not fit timm's {saved.spec.timm_name}: {error}") from error
    return plain


def _check_asked(out: str | Path | None, hub: str | Path | None, onnx: str | Path | None) -> None:
    """Refuse, before any work, what cannot be written; says what is missing."""
    if out is None and hub is None and onnx is None:
        raise ConfigError("nothing is to be written; name a file (out), a folder for the hub (hub) or an ONNX file")
    if out is not None and Path(out).suffix != ".safetensors":
        raise ConfigError(f"the exported file must end in .safetensors, got {str(out)!r}")
    if onnx is not None:
        check_onnx(Path(onnx))


def _real_batch(saved: SavedRun, net: Backbone, data_root: str | Path | None) -> tuple[Tensor | None, str]:
    """Some test images of the run, preprocessed, or None and why there are none."""
    try:
        data = saved.data(net, saved.source(data_root), NUM_COMPARED)
        images, _ = next(iter(data.test_dataloader()))
        return data.preprocess(images), ""
    except DataError as error:
        return None, f"test images of the run: {error}"


@dataclass(frozen=True, kw_only=True)
class Retest:
    """A phase tested again.

    Attributes:
        number: of the phase in its run, from 1; phases of another task are not tested.
        recorded: accuracy in the run's record, percent.
        measured: accuracy now, percent.
        metric: what both are where images have several labels, mAP.
    """

    number: int
    label: str
    recorded: float | None
    measured: float
    metric: str = ACCURACY

    @property
    def is_same(self) -> bool:
        """Whether the two are equal, to the last digit."""
        return self.recorded == self.measured


def evaluate(
    run_dir: str | Path,
    weights: str | Path | None = None,
    data_root: str | Path | None = None,
    trust: str | Iterable[str] = (),
) -> list[Retest]:
    """Test every phase of a finished run again: same images, batches, precision, device and threads.

    Args:
        run_dir, weights, trust: as for `load`.
        data_root: folder of the images, if it has moved.

    Raises:
        DataError: if the images are not those of the run. ConfigError: if the run needs a GPU that is not there.
    """
    saved = SavedRun.read(run_dir, trust)
    source = saved.source(data_root)
    splits = (saved.protocol.train_split, saved.protocol.eval_split)
    actual, expected = source.fingerprint(saved.task, splits), saved.content("data", "fingerprint")
    if actual != expected:
        raise DataError(
            f"the images of {saved.task.name} are not those of the run: content {actual}, it had {expected}"
        )
    machine = saved.machine
    if machine.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "the run was computed on a GPU and there is none here; its number cannot be repeated on a CPU"
        )
    with own_randomness(), _threads(machine.threads):
        net = machine.place(saved.network(weights), saved.protocol.precision)
        net.set_attention(machine.attention)
        data = saved.data(net, source)
        return [
            Retest(
                number=number,
                label=phase.label,
                recorded=phase.accuracy,
                metric=phase.metric,
                measured=_retest(net, installed, data, saved.protocol, machine),
            )
            for number, (phase, installed) in enumerate(saved.install(net), start=1)
            if phase.accuracy is not None  # of another task, see from=RUN_DIR
        ]


def _retest(net: Backbone, installed: Installed, data: VTABDataModule, protocol: Protocol, machine: Machine) -> float:
    """Accuracy of the network as it stands, percent, computed as at the end of a phase."""
    hush()
    module = PhaseModule(
        net,
        installed,
        protocol,
        data.preprocess,
        epochs=1,
        steps_per_epoch=1,
        seed_parts=(data.seed,),
    )
    trainer = L.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        precision=PRECISIONS[protocol.precision],  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data.place(machine.device)
    with attended(trainer, net, "stopped by the user"):
        (outcome,) = trainer.test(module, data.test_dataloader(), verbose=False)
    return float(outcome["test_accuracy"])


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
