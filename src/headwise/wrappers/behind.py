"""Updates beside a projection that no weight can hold, since they are not linear in what they read.

Legend: B batch, O output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.updates.adapted import Delta
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.settling import BesideLinear


class BottleneckDelta(Delta):
    """A bottleneck on the output of a projection: y + s U drop(act(D y)).

    Entries of the projection's bias that train (`Delta.have_bias_entries`) are added to y before.
    """

    reads_base = False

    def __init__(self, part: Bottleneck) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """What is added to the projection's output x, (B, ..., O); `base` is not read."""
        if "bias_values" not in self._parameters:
            return self.part(x)
        values, entries = self.get_parameter("bias_values"), self.get_buffer("bias_entries").long()
        shift = values.new_zeros(x.shape[-1]).index_put((entries,), values).to(x.dtype)
        return shift + self.part(x + shift)

    @property
    def updates_bias(self) -> bool:
        """Never: what it does to the bias is part of what it adds."""
        return False


class BehindLinear(BesideLinear):
    """y + delta(y), y what the module gives."""

    def onto(self, x: Tensor, start: Tensor | None) -> Tensor:
        """The output for x (..., I), added to `start`, (..., O), if that is given."""
        y = self.module(x)
        added = self.delta.change(y, torch.empty(0, device=y.device))
        whole: Tensor = y + added.to(y.dtype)
        return whole if start is None else start.to(y.dtype) + whole
