"""What stays in a network when the phase that brought it is over, and the type it computes in."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class Settling(nn.Module):
    """A module that stays in place, frozen, when the phase that brought it is over.

    Attributes:
        settled: whether that phase is over: its parts then stay in evaluation mode.
    """

    settled = False
    theirs: ClassVar[str]
    """Name of the child that is the network's own; the other children are parts."""

    def settle(self) -> None:
        """End of the phase: stay in place without dropout."""
        self.settled = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the parts of a settled module keep to evaluation."""
        super().train(mode)
        if self.settled:
            for name, child in self.named_children():
                if name != self.theirs:
                    child.eval()
        return self


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The type that what a method adds has beside a tensor of the network: the same, in narrow types float32."""
    return torch.promote_types(tensor.dtype, torch.float32)
