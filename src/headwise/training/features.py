"""What a frozen network makes of its images, computed once: a linear probe then trains on that.

Legend: N images, C channels, D features (what the classifier reads), K classes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from headwise.data.vtab import EvalBatches, TrainBatches, VTABDataModule
from headwise.methods.base import Method
from headwise.network.backbone import Backbone
from headwise.network.portions import split
from headwise.results.fingerprint import fingerprint
from headwise.training.module import PhaseModule

LIMIT = 256 << 20
"""Bytes of a split's features that are held; of more images the network is asked each time."""
Batch = tuple[Tensor, Tensor]
_PLAIN = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Features:
    """Of one split, (N, D), in its order; labels, (N,) or (N, K); seconds that computing them took. Kept on the CPU."""

    values: Tensor
    labels: Tensor
    seconds: float

    def on(self, device: torch.device) -> Features:
        """The same on a device."""
        return Features(self.values.to(device), self.labels.to(device), self.seconds)


class FeatureBatches:
    """A split's features (B, D) and labels, (B,) or (B, K), in its own order, at most `size` of them at a time."""

    def __init__(self, features: Features, size: int) -> None:
        self.features, self.size = features, size

    def __len__(self) -> int:
        return -(-len(self.features.labels) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        yield from zip(self.features.values.split(self.size), self.features.labels.split(self.size), strict=True)


@dataclass(frozen=True)
class Inputs:
    """What a phase trains on and is tested with: batches of images (B, C, H, W), or of features (B, D).

    The images and their order are the same either way. `seconds` are those that computing the features took when it was
    done; None where they are not used.
    """

    train: TrainBatches
    test: EvalBatches | FeatureBatches
    seconds: float | None = None


class KeptFeatures:
    """Features of the network and the images that were last asked for, for the next run of this process."""

    def __init__(self) -> None:
        self._key = ""
        self.splits: dict[tuple[str, int], Features] = {}  # by the size of the batches that they came from as well

    def start(self, key: str) -> None:
        """Forget what is not of `key`, which says all that features depend on."""
        if key != self._key:
            self._key = key
            self.splits.clear()


KEPT = KeptFeatures()


def are_fixed(method: Method, augment: str) -> bool:
    """Whether a method's features of an image never change: neither the network before the classifier nor its input."""
    return method.reads_features and augment == "none" and method.consistency is None


def inputs(method: Method, module: PhaseModule, data: VTABDataModule, trainer: L.Trainer, epochs: int) -> Inputs:
    """Features where they are fixed (`are_fixed`); else the images.

    The same numbers come of it: features are those of batches as large as those of training and of testing. Without
    epochs to train nothing would be gained.
    """
    images = data.test_dataloader()
    plain = Inputs(data.train_dataloader(), images)
    if not epochs or not are_fixed(method, data.augment):
        return plain
    # what the classifier reads: the columns of its one matrix, (K, D)
    width = sum(parameter.shape[-1] for parameter in module.net.head.parameters() if parameter.ndim == 2)
    whole, device = data.train_batches(shuffle=False), _device(module)
    if len(whole.labels) * width * torch.float32.itemsize > LIMIT:
        return plain
    module.installed.set_mode()
    KEPT.start(_key(module, data, str(trainer.precision)))
    train = _features(module, trainer, "train", whole, whole.batch_size)
    if train is None:
        return plain
    batches = plain.train
    there = train.on(device)
    of_train = TrainBatches(
        there.values,
        there.labels,
        batches.batch_size,
        batches.seed,
        batches.phase,
        batches.drop_last,
        device=device,
    )
    fits = len(images.labels) * train.values[0].nbytes <= LIMIT
    test = _features(module, trainer, "test", images, images.batch_size) if fits else None
    of_test = images if test is None else FeatureBatches(test.on(device), images.batch_size)
    return Inputs(of_train, of_test, train.seconds)


def _features(
    module: PhaseModule, trainer: L.Trainer, name: str, batches: Iterable[Batch], batch_size: int
) -> Features | None:
    """Of all images of a split; None where the classifier reads something else than one row per image."""
    if (kept := KEPT.splits.get((name, batch_size))) is not None:
        return kept
    start, device = time.perf_counter(), _device(module)
    values: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for batch in batches:
            for images, theirs, _ in split(batch, module.parts):
                logits, read = _read(module.net, module.preprocess(images.to(device)))
                # a network that does more with its classifier than apply it last is not one of these
                if read is None or (not values and not torch.equal(module.net.head(read), logits)):
                    return None
                values.append(read.cpu())
                labels.append(theirs.cpu())
    seconds = time.perf_counter() - start
    return KEPT.splits.setdefault((name, batch_size), Features(torch.cat(values), torch.cat(labels), seconds))


def _read(net: Backbone, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B, K) of images as the network takes them, and the features (B, D) that the classifier read for them."""
    seen: list[Tensor] = []

    def see(head: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    hook = net.head.register_forward_pre_hook(see)
    try:
        logits = net(x)
    finally:
        hook.remove()
    return logits, seen[0] if len(seen) == 1 and seen[0].shape == (len(x), seen[0].shape[-1]) else None


def _key(module: PhaseModule, data: VTABDataModule, precision: str) -> str:
    """All that features depend on: the network, its images, and how it computes."""
    planes = data.pixels(data.train_split).images.transpose(0, 3, 1, 2)
    images = hashlib.sha256(np.ascontiguousarray(planes).data).hexdigest()
    preparation = [data.stored_size, data.resize, data.mean, data.std, data.train_images, data.test_images]
    return fingerprint(
        {
            "network": _content(module.net),
            "images": [data.task.name, data.fingerprint(), data.train_split, data.eval_split, images],
            "preparation": [data.img_size, *preparation],
            "computing": [str(_device(module)), precision, torch.get_num_threads(), module.parts],
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    )


def _device(module: PhaseModule) -> torch.device:
    """Where the network is; the module itself is told by Lightning only when training begins."""
    return next(module.net.parameters()).device


def _content(net: Backbone) -> str:
    """Hash of all tensors outside the classifier, and of what the modules are and are set to."""
    digest = hashlib.sha256()
    head = {id(tensor) for tensor in net.head.parameters()}
    for name, tensor in [*net.model.named_parameters(), *net.model.named_buffers()]:
        if id(tensor) not in head:
            whole = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}\n".encode())
            digest.update(whole.flatten().view(torch.uint8).numpy().data)
    for name, part in net.model.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, _PLAIN)}
        digest.update(f"{name} {type(part).__qualname__} {part.extra_repr()} {sorted(settings.items())}\n".encode())
    return digest.hexdigest()
