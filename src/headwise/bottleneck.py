"""Bottleneck: the two-layer network of every adapter (down, non-linearity, up).

Legend: C channels, h hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError, suggest


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "quick_gelu": quick_gelu}
INITS = ("lora", "houlsby", "xavier")


class Bottleneck(nn.Module):
    """s U drop(act(D x)), D (h, C), U (C, h), with or without biases. Parameters: 2 C h, with biases + h + C.

    Never zero on both sides: then no gradient could reach either matrix.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "relu",
        bias: bool = False,
        dropout: float = 0.0,
        scale: float = 1.0,
        init: str = "lora",
    ) -> None:
        """Build one adapter.

        Args:
            width: C.
            hidden: h, at least 1.
            activation: one of `ACTIVATIONS`.
            bias: of both layers, zero at the start.
            dropout: of the hidden, in [0, 1).
            scale: s, constant.
            init: ``lora`` (D Kaiming uniform, U zero: the identity), ``houlsby`` (both truncated normal, std 0.01) or
                ``xavier`` (both Xavier uniform, biases normal with std 1e-6).

        Raises:
            ConfigError: for a width, dropout or name out of range.
        """
        super().__init__()
        if isinstance(hidden, bool) or not isinstance(hidden, int) or not 1 <= hidden <= width:
            raise ConfigError(f"the adapter's hidden width must be in 1..{width}, got {hidden}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"the adapter's dropout must be in [0, 1), got {dropout}")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}{suggest(activation, ACTIVATIONS)}")
        if init not in INITS:
            raise ConfigError(f"unknown adapter init {init!r}{suggest(init, INITS)}")
        self.activation, self.scale = activation, float(scale)
        self.down = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(hidden, width, bias=bias)
        self.drop = nn.Dropout(dropout)
        for layer in (self.down, self.up):
            if bias:
                nn.init.zeros_(layer.bias)
            if init == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=0.01)
            elif init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
                if bias:
                    nn.init.normal_(layer.bias, std=1e-6)
        if init == "lora":
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Correction, same shape as x (..., C)."""
        return self.scale * self.up(self.drop(ACTIVATIONS[self.activation](self.down(x))))
