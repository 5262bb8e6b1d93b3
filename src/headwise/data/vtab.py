"""VTABDataModule: the images of one task as batches. No worker process is started.

Images lie in memory once; what a source keeps on disk is memory-mapped, and what a batch has read of it is let go.

Legend: B batch, C channels (3, or 1 for grey tasks), H/W stored size, S the side of the square that the network sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.data import augment as augmentation
from headwise.data.ahead import CPU, Batch, ahead, brought
from headwise.data.augmented import augment_batch
from headwise.data.bulk import mapped, release
from headwise.data.decode import check_resize
from headwise.data.preparation import Preparation
from headwise.data.sources import Pixels, Source
from headwise.data.tasks import VTABTask, check_apart, check_split
from headwise.errors import ConfigError, DataError, check_choice

__all__ = ["EvalBatches", "TrainBatches", "VTABDataModule", "VTABTask"]

RESIDENT = 1 << 30
"""Bytes of training images that lie on a GPU as a whole; of more, each batch is brought there."""


class TrainBatches:
    """Batches of the training images in a new order each epoch.

    The order is a function of (seed, phase, epoch) and of nothing else, so a resumed run sees the same batches. The
    epoch is set by ``set_epoch``, which Lightning calls through ``sampler`` before each epoch.

    Args:
        images: (N, C, H, W) uint8; an array may be memory-mapped.
        labels: (N,) int64; (N, K) of 0 and 1 where images may have several.
        batch_size: B.
        seed: of the run.
        phase: 0-based number of the training phase, so that two phases do not repeat each other's order.
        drop_last: leave out the last, smaller batch; None: only if there is more than one batch.
        shuffle: False gives the stored order and every image.
        size: S, if the images are to be augmented (see ``headwise.data.augment``); None: they are not.
        device: where batches are made; images that are a Tensor lie there, as labels do.
    """

    def __init__(
        self,
        images: Tensor | NDArray[np.uint8],
        labels: Tensor,
        batch_size: int,
        seed: int,
        phase: int = 0,
        drop_last: bool | None = None,
        shuffle: bool = True,
        size: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.size, self.device = size, device
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.phase, self.shuffle = batch_size, seed, phase, shuffle
        self.drop_last = len(images) > batch_size if drop_last is None else drop_last
        self.epoch = 0
        if len(self) == 0:
            raise ConfigError(f"drop_last leaves no batch: {len(images)} images, batch_size={batch_size}")

    @property
    def sampler(self) -> TrainBatches:
        """What Lightning tells the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: ``epoch`` counts from 0."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """Positions of the images in one epoch, (N,)."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        digest = hashlib.sha256(f"{self.seed}/{self.phase}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(len(self.images), generator=generator)

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Batch]:
        order, epoch = self.order(self.epoch), self.epoch
        there = order.to(self.device)

        def make(step: int) -> Batch:
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images = self._images(order[part], there[part])
            if self.size is not None:
                random = augmentation.generator(self.seed, self.phase, epoch, step)
                augment = augmentation.augment if images.device.type == "cpu" else augment_batch
                images = augment(images, self.size, random)
            return images, self.labels[there[part]]

        # taking rows of a tensor is no work that would be worth a thread
        takes_long = self.size is not None or (self.device.type != "cpu" and not isinstance(self.images, Tensor))
        yield from ahead(make, len(self), self.device) if takes_long else map(make, range(len(self)))

    def _images(self, chosen: Tensor, there: Tensor) -> Tensor:
        """Images at these positions, which are given on the CPU and on the device."""
        if isinstance(self.images, Tensor):
            return self.images[there]
        images = torch.from_numpy(self.images[chosen.numpy()])
        release(self.images)
        return brought(images, self.device)


class EvalBatches:
    """Batches of a split, (N, H, W, C) uint8, in its own order, every image once. The images may be memory-mapped.

    For a GPU as `device` each batch is brought there while the one before it is computed.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, device: torch.device = CPU
    ) -> None:
        self.images, self.labels, self.batch_size, self.device = images, labels, batch_size, device

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # on a CPU a thread would take its time from the network
        is_cpu, count = self.device.type == "cpu", len(self)
        yield from map(self._batch, range(count)) if is_cpu else ahead(self._batch, count, self.device)

    def _batch(self, step: int) -> Batch:
        chosen = slice(step * self.batch_size, (step + 1) * self.batch_size)
        images = to_tensor(self.images[chosen])
        release(self.images)
        labels = torch.from_numpy(np.array(self.labels[chosen]))
        return brought(images, self.device), brought(labels, self.device)


class VTABDataModule(L.LightningDataModule):
    """Batches of (uint8 images, labels); ``preprocess`` turns images into what the network takes.

    Options that `headwise.protocol.recipe.Protocol` has as well mean what they mean there.

    Args:
        img_size: S.
        seed: of the run, decides the order of the training images.
        select_split: split that ``val_dataloader`` gives, for protocols that look at one during training; None: none.
        mean, std: normalisation of pixels in [0, 1], per channel.
        drop_last: leave out the last, smaller training batch; None: only if there is more than one batch.
    Raises:
        ConfigError: for unknown names or sizes below 1.
    """

    def __init__(
        self,
        task: VTABTask,
        source: Source,
        img_size: int,
        batch_size: int = 64,
        seed: int = 0,
        *,
        eval_batch_size: int = 256,
        train_split: str = "train800val200",
        eval_split: str = "test",
        select_split: str | None = None,
        resize: str = "pil_bicubic",
        augment: str = "none",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        drop_last: bool | None = None,
        train_images: int | None = None,
        test_images: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("img_size", img_size), ("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        check_apart(train_split, eval_split)
        if select_split is not None:
            check_split(select_split)
        check_resize(resize)
        check_choice("augment", augment, augmentation.AUGMENTS)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mean and std need 3 values each and std above 0, got mean={mean}, std={std}")
        self.task, self.source, self.img_size, self.seed = task, source, img_size, seed
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.train_split, self.eval_split, self.select_split = train_split, eval_split, select_split
        self.resize, self.mean, self.std = resize, tuple(map(float, mean)), tuple(map(float, std))
        self.train_images, self.test_images = train_images, test_images
        self.augment = augment
        self.stored_size = img_size if augment == "none" else round(img_size * augmentation.TEST_RESIZE)
        self.phase = 0
        self._pixels: dict[str, Pixels] = {}
        self._train: tuple[Tensor | NDArray[np.uint8], Tensor] | None = None
        self._device = CPU

    def place(self, device: torch.device) -> None:
        """Make batches on a device from now on. Training images that are not too many lie there as a whole."""
        if device != self._device:
            self._device, self._train = device, None

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return self.task.num_classes

    @property
    def num_test(self) -> int:
        """Images that ``test_dataloader`` gives."""
        return len(self.pixels(self.eval_split).labels)

    def pixels(self, split: str) -> Pixels:
        """Images of a split as the source gives them, read once; DataError for a test by mAP where none has a label."""
        if split not in self._pixels:
            limit = self.train_images if split == self.train_split else self.test_images
            pixels = self.source.load(self.task, split, self.stored_size, self.resize, limit)
            if split != self.train_split and self.task.multi_label and not pixels.labels.any():
                raise DataError(
                    f"task {self.task.name!r}: no image of {split} has a label; a mean average precision needs one"
                )
            self._pixels[split] = pixels
        return self._pixels[split]

    def train_batches(self, phase: int | None = None, shuffle: bool = True) -> TrainBatches:
        """Training batches of a phase; without shuffling every image once in stored order, for scores over the set."""
        if self._train is None:
            if self.task.multi_label:  # what cannot be tested is refused before it is trained
                for split in filter(None, (self.eval_split, self.select_split)):
                    self.pixels(split)
            pixels = self.pixels(self.train_split)
            # plane by plane, (N, C, H, W), once for all epochs, as batches are taken from it
            planes = np.require(pixels.images.transpose(0, 3, 1, 2), requirements="C")
            is_resident = self._device.type != "cpu" and planes.nbytes <= RESIDENT and mapped(planes) is None
            images = torch.tensor(planes, device=self._device) if is_resident else planes
            self._train = images, torch.from_numpy(np.array(pixels.labels)).to(self._device)
            # the same memory seen as (N, H, W, C), so that the images are not held twice
            self._pixels[self.train_split] = replace(pixels, images=planes.transpose(0, 2, 3, 1))
        # scores over the set are of every image
        drop_last = self.drop_last if shuffle else False
        phase = self.phase if phase is None else phase
        size = self.img_size if shuffle and self.augment != "none" else None
        return TrainBatches(*self._train, self.batch_size, self.seed, phase, drop_last, shuffle, size, self._device)

    def eval_batches(self, split: str | None = None) -> EvalBatches:
        """Batches of a split in order, by default ``eval_split``."""
        pixels = self.pixels(split or self.eval_split)
        return EvalBatches(pixels.images, pixels.labels, self.eval_batch_size, self._device)

    def start_phase(self, phase: int) -> None:
        """Choose the 0-based training phase whose order ``train_dataloader`` gives."""
        self.phase = phase

    def train_dataloader(self) -> TrainBatches:
        """Training batches of the current phase."""
        return self.train_batches()

    def val_dataloader(self) -> EvalBatches | list[Batch]:
        """Batches of ``select_split``; none if the protocol does not look at one."""
        return [] if self.select_split is None else self.eval_batches(self.select_split)

    def test_dataloader(self) -> EvalBatches:
        """Batches of ``eval_split``."""
        return self.eval_batches()

    @property
    def preparation(self) -> Preparation:
        """How images become what the network takes."""
        return Preparation(self.img_size, self.resize, self.mean, self.std, self.stored_size)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize and normalise a batch, (B, C, H, W) uint8, where it lies: (B, 3, S, S) float32, see `Preparation`."""
        return self.preparation(images)

    def provenance(self) -> dict[str, Any]:
        """Where pixels came from and what was done to them, as plain values for the result file."""
        for split in (self.train_split, self.eval_split):
            self.pixels(split)  # not read yet where every phase was taken from the store
        used = dict(self._pixels)
        final = used[self.eval_split]
        return {
            "source": final.provenance["source"],
            "splits": {split: len(pixels.labels) for split, pixels in used.items()},
            "resize": {split: pixels.provenance["resize"] for split, pixels in used.items()},
            "resize_to_network": self.resize,
            "augment": self.augment,
            "img_size": self.img_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint(),
            "labels": self.labels(),
        }

    def fingerprint(self) -> str:
        """Content hash of the two splits in use."""
        return self.source.fingerprint(self.task, (self.train_split, self.eval_split))

    def labels(self) -> list[str]:
        """The source's labels, and ``subset`` where only some images are used."""
        limits = {self.train_split: self.train_images, self.eval_split: self.test_images}
        subset = any(n is not None and n < self.source.count(self.task, split) for split, n in limits.items())
        return self.source.labels(self.task) + (["subset"] if subset else [])


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, C) array -> (N, C, H, W) tensor with its own memory."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
