"""What stays in a network when the phase that brought it is over; an update beside a layer is of that kind."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.updates.adapted import Delta


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


class BesideLinear(Settling):
    """y = module(x) + delta(x), for bases without a dense weight (a 4-bit linear, a library's own layer)."""

    theirs = "module"

    def __init__(self, module: nn.Module, delta: Delta) -> None:
        super().__init__()
        if delta.reads_base:
            raise ConfigError(f"{type(delta).__name__} reads the dense base weight; this projection has none")
        if delta.updates_bias:
            raise ConfigError(f"{type(delta).__name__} updates the bias too, which needs a dense projection")
        self.module, self.delta = module, delta

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I)."""
        return self.onto(x, None)

    def onto(self, x: Tensor, start: Tensor | None) -> Tensor:
        """The output added to `start`, (..., O), if that is given.

        A module that has such a method itself is called by it: in narrow types it adds its product last, so that small
        updates do not round away.
        """
        update = self.delta.change(x, x.new_empty(0))
        update = update if start is None else start + update
        onto = getattr(self.module, "onto", None)
        if onto is not None:
            return onto(x, update)
        # a library's layer gives its own type, which the update, at least float32, must not widen
        y = self.module(x)
        return y + update.to(y.dtype)
