"""PhaseModule: the one LightningModule, and where its random numbers come from."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from headwise.errors import NonFiniteLoss
from headwise.methods._named import copy_into
from headwise.methods.base import Batches, Installed
from headwise.network.backbone import Backbone
from headwise.network.portions import split
from headwise.protocol.recipe import Protocol
from headwise.results.fingerprint import fingerprint
from headwise.training.consistency import Disturbed
from headwise.updates.objective import Tally, mean_precision
from headwise.updates.objective import loss as mean_loss

HISTORY = "consistency_history"
"""In a checkpoint: the logits that mode fast of `headwise.updates.consistency.Consistency` compares with."""

READ_EVERY = 32
"""Steps whose losses are read from a GPU together."""


def reseed(*parts: int | str) -> None:
    """Set every random state (python, numpy, torch) from `parts`: what is drawn next depends on nothing else."""
    number = number_of(*parts)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def number_of(*parts: int | str) -> int:
    """The seed that `parts` mean, below 2**32."""
    # a hash of the parts, since sums or products of seeds would let (seed 1, phase 2) meet (seed 2, phase 1)
    return int(fingerprint({"seed": [str(part) for part in parts]}), 16) % 2**32


class PhaseModule(L.LightningModule):
    """Trains the tunable tensors of a network with `headwise.updates.objective.loss`. Knows no method by name.

    A batch passes timm's network as it is, but for the projections: there stands `headwise.updates.qkv.SplitQKV`.
    """

    strict_loading = False  # checkpoints hold only the method's tensors; on_load_checkpoint checks the names itself

    def __init__(
        self,
        net: Backbone,
        installed: Installed,
        protocol: Protocol,
        preprocess: Callable[[Tensor], Tensor],
        *,
        epochs: int,
        steps_per_epoch: int,
        seed_parts: Sequence[int | str],
        lr: float | None = None,
        cycles: int = 1,
        batches: Batches | None = None,
        parts: int = 1,
        consistency: Disturbed | None = None,
    ) -> None:
        """Hold what one phase needs.

        Args:
            preprocess: uint8 images (B, C, H, W) to what the network takes, (B, 3, S, S).
            steps_per_epoch: optimiser steps.
            seed_parts: with the epoch, the source of every random number of the phase.
            lr: peak learning rate; None takes the protocol's.
            cycles: times that the schedule runs, each over an equal part of the epochs and with a fresh optimiser.
            batches: the training set in a fixed order, for methods that measure something over all of it.
            parts: in which a batch is computed; their gradients add up to the batch's.
            consistency: the network under noise, for a method that asks for that.
        """
        super().__init__()
        self.net, self.installed, self.protocol, self.preprocess = net, installed, protocol, preprocess
        self.epochs, self.steps_per_epoch, self.peak, self.cycles = epochs, steps_per_epoch, lr, cycles
        self.seed_parts, self.batches, self.parts = tuple(seed_parts), batches, parts
        self.consistency = consistency
        self._unread: list[tuple[int, Tensor]] = []  # steps and losses that are not known to be finite yet
        self.correct, self.seen = torch.zeros((), dtype=torch.long), 0
        self.confusion: Tensor | None = None  # (K, K) images by true and predicted class, of the last test
        self.precisions: list[float | None] = []  # of the last test, by class, of images with several labels
        self._tally = Tally()  # of images with several labels

    def on_train_epoch_start(self) -> None:
        """Draw this epoch's randomness from the epoch alone, so that a resumed run repeats it."""
        reseed(*self.seed_parts, "epoch", self.current_epoch)
        if self.consistency is not None:
            self.consistency.start(self.current_epoch, self.device)
        if self.current_epoch and self.current_epoch % (self.epochs // self.cycles) == 0:
            # a new cycle starts as a second phase does; the state of a checkpoint of the epoch before goes as well
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        self.installed.set_mode()
        if self.protocol.eval_mode_after is not None and self.current_epoch >= self.protocol.eval_mode_after:
            self.net.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch plus the method's penalty."""
        # gradients of all parts but the last are added up here; Lightning's own backward takes the last one
        *earlier, last = split(batch, self.parts)
        told: list[Tensor] = []
        whole: list[Tensor] = []
        if self.consistency is not None:
            self.consistency.begin(batch_idx)
        if earlier:
            self.trainer.optimizers[0].zero_grad()
        for part in (*earlier, last):
            loss, term = self._loss(*part)
            whole.append(loss.detach().double())
            told.append(whole[-1] if term is None else whole[-1] - term)
            if part is not last:
                self.trainer.strategy.backward(loss, None)
        self._watch(sum(whole[1:], whole[0]), batch_idx)
        # a method's penalty is not told either: the loss compares runs with and without
        mean = sum(told[1:], told[0]).float()
        self.log("train_loss", mean, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        penalty = self.installed.penalty()
        return loss if penalty is None else loss + penalty

    def _watch(self, loss: Tensor, batch_idx: int) -> None:
        """Stop where a loss is not finite: at once on a CPU, else at the latest before the epoch's checkpoint.

        Reading a number of a GPU waits for all that it has been told to do, so that losses are read together.

        Raises:
            NonFiniteLoss: with the first such step; the checkpoint then holds the last finite weights.
        """
        self._unread.append((self.global_step, loss))
        is_last = (batch_idx + 1) % self.steps_per_epoch == 0
        if loss.device.type != "cpu" and len(self._unread) < READ_EVERY and not is_last:
            return
        values = torch.stack([value for _, value in self._unread]).tolist()
        steps = [step for step, _ in self._unread]
        self._unread.clear()
        for step, value in zip(steps, values, strict=True):
            if not np.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss became {value} at epoch {self.current_epoch + 1}, step {step}; "
                    "the last saved epoch is kept: lower protocol.lr or the method's scale and run again"
                )

    def _loss(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor | None]:
        """What a part of a batch with this `share` of its images adds to the batch's mean loss.

        Returns:
            The loss, and what of it is not the loss of the labels but the difference of two disturbed passes.
        """
        term = None
        if self.consistency is None:
            loss = mean_loss(self.logits(images), labels)
        else:
            loss, difference = self.consistency.loss(self.preprocess(images), labels, self.global_step)
            loss, term = loss + difference, share * difference.detach().double()
        return (loss if share == 1.0 else loss * share), term

    def logits(self, batch: Tensor) -> Tensor:
        """Of images as they are stored, (B, C, H, W), or of what the network makes of them, (B, D): (B, K), float32.

        Whatever the network computes in: in bf16 the loss would keep three digits.
        """
        logits: Tensor = self.net.head(batch) if batch.ndim == 2 else self.net(self.preprocess(batch))
        return logits.float()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep what the earlier parts of the batch have added; `training_step` has cleared what was before them."""
        if self.parts == 1:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count correct predictions; of images with several labels keep what mAP needs."""
        images, labels = batch
        logits = self.logits(images)
        if labels.ndim == 2:
            self._tally.add(logits, labels)
            return
        # added up where the logits are, and read once: on a GPU every reading waits for it
        predicted, num_classes = logits.argmax(1), logits.shape[1]
        self.correct = self.correct.to(logits.device) + (predicted == labels).sum()
        self.seen += len(labels)
        # a true and a predicted class as one number: the whole table is then one count
        pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, -1)
        self.confusion = pairs if self.confusion is None else self.confusion + pairs

    def on_test_epoch_end(self) -> None:
        """Log the accuracy in percent; of images with several labels, under the same name, mAP."""
        if self._tally.total:
            self.precisions, self._tally = self._tally.precisions, Tally()
            self.log("test_accuracy", mean_precision(self.precisions))
            return
        self.log("test_accuracy", 100.0 * (self.correct.float() / self.seen))

    def configure_optimizers(self) -> Any:
        """The protocol's optimiser over the method's parameter groups, and its schedule by step."""
        groups = self.installed.param_groups(self.protocol.weight_decay)
        peak = self.protocol.lr if self.peak is None else self.peak
        for group in groups:
            if "rate" in group:
                group["lr"] = peak * group.pop("rate")
        if self.protocol.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(groups, lr=peak, fused=self._fuses())
        epochs = self.epochs // self.cycles
        rate = self.protocol.learning_rate(epochs, self.steps_per_epoch, peak)
        period = epochs * self.steps_per_epoch if self.cycles > 1 else sys.maxsize
        # as a factor, so that groups with a rate of their own follow the same shape
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step % period) / peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _fuses(self) -> bool | None:
        """Whether AdamW takes one pass over all tensors, as it can on a GPU; None: as torch chooses.

        Not where somebody looks at gradients before the step: fused optimisers divide those of fp16 by their scale
        within it, and Lightning refuses to clip theirs.
        """
        is_gpu = all(parameter.device.type == "cuda" for parameter in self.net.parameters())
        return True if is_gpu and self.protocol.clip is None and self.protocol.precision != "fp16" else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the method's tensors only."""
        checkpoint["state_dict"] = {name: tensor.detach() for name, tensor in self.installed.state().items()}
        if self.consistency is not None and self.consistency.history is not None:
            checkpoint[HISTORY] = self.consistency.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them; a checkpoint of another method or network is refused by name."""
        self.installed.load(checkpoint["state_dict"])
        if self.consistency is not None and self.consistency.history is not None:
            copy_into({HISTORY: self.consistency.history}, {HISTORY: checkpoint[HISTORY]})
