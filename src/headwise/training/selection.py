"""Choosing an epoch on the test set, for protocols that imitate papers which did. Results made with it are stamped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from headwise.protocol.recipe import Protocol
from headwise.updates.objective import Tally


class TestSelection(L.Callback):
    """Keeps the tensors of the epoch that does best on the test set; idle unless the protocol selects ``best_test``.

    Attributes:
        first: the first epoch, counted from 1, that may be chosen: see `headwise.methods.base.Installed.final_from`.
        best: tensors of the best epoch so far, as stored; None where nothing is selected.
        epoch: the epoch of these tensors, counted from 1.
        accuracy: what that epoch reached, a fraction; mAP where images have several labels.
        test: batches of images, or of their features, to look at; set before training.
    """

    __test__ = False  # not a test case, whatever its name

    def __init__(self, protocol: Protocol, first: int = 1) -> None:
        self.first = first
        self.test: Iterable[tuple[Tensor, Tensor]] = ()
        self.every = protocol.select_every if protocol.select == "best_test" else 0
        self.after = protocol.select_after
        self.best: dict[str, Tensor] | None = None
        self.epoch: int | None = None
        self.accuracy = -1.0

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the test set every so many epochs and after the last one; ties keep the earlier epoch."""
        epoch = trainer.current_epoch + 1
        module: Any = pl_module
        if not self.every or (not self._due(epoch) and epoch != module.epochs):
            return
        # parts of the network may stay in evaluation while it trains, so `set_mode` restores the mode and not train()
        training = module.net.training
        module.net.eval()
        tally = Tally()
        with trainer.precision_plugin.forward_context():
            for images, labels in self.test:
                tally.add(module.logits(images.to(module.device)), labels.to(module.device))
        if training:
            module.installed.set_mode()
        share = tally.share
        if share > self.accuracy:
            self.epoch, self.accuracy = epoch, share
            # packed() may give the live tensors, which train on
            self.best = {name: tensor.clone() for name, tensor in module.installed.packed().items()}

    def _due(self, epoch: int) -> bool:
        """Whether `epoch`, counted from 1, ends with a look."""
        if epoch < self.first:
            return False
        if self.after is None:
            return epoch % self.every == 0
        return epoch > self.after and (epoch - self.after - 1) % self.every == 0

    def report(self) -> dict[str, Any]:
        """For the record of the phase: the epoch taken, its accuracy (percent), and the first that could be."""
        if self.epoch is None:
            return {}
        return {"selected": {"epoch": self.epoch, "accuracy": 100.0 * self.accuracy, "first": self.first}}

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far: its tensors, its number, its accuracy."""
        return {"best": self.best, "epoch": self.epoch, "accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with it; a checkpoint that does not say a usable epoch (of older code) leaves the choice open."""
        epoch = state_dict.get("epoch")
        if epoch is not None and epoch >= self.first:
            self.epoch, self.best, self.accuracy = epoch, state_dict["best"], state_dict["accuracy"]
