"""Bottleneck: the two-layer network of every adapter (down, non-linearity, up).

Legend: C channels, h hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError, check_choice
from headwise.schema.kinds import is_whole


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "quick_gelu": quick_gelu}
INITS = ("lora", "lora_bias", "houlsby", "bert", "xavier")
STD = 0.01
"""Of Houlsby's normal, which is cut at twice that: the values have the deviation 0.0088."""


class InputNorm(nn.LayerNorm):
    """A LayerNorm that an adapter reads through, eps 1e-6, not decayed. Parameters: 2 C."""

    undecayed = ("weight", "bias")

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


class Bottleneck(nn.Module):
    """s U drop(act(D x)), D (h, C), U (C, h), with or without biases. Parameters: 2 C h, with biases + h + C.

    Never zero on both sides: then no gradient could reach either matrix. With channel scales, c * that: one trained
    factor per channel, 1 at the start and not decayed, + C; with a learned scale one factor for all, + 1. With a norm
    it reads LN(x), + 2 C.
    """

    undecayed = ("channel_scale", "learned_scale")
    channel_scale: nn.Parameter | None
    learned_scale: nn.Parameter | None

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
        channel_scale: bool = False,
        drop_path: float = 0.0,
        learned_scale: bool = False,
        norm: bool = False,
    ) -> None:
        """Build one adapter of `width` C; the options are those of `headwise.methods.adapters.Adapters`.

        One `init` is here alone: ``xavier``, both layers Xavier uniform, biases normal with std 1e-6. ConfigError for a
        width, dropout or name out of range.
        """
        super().__init__()
        if not is_whole(hidden, width):
            raise ConfigError(f"the adapter's hidden width must be in 1..{width}, got {hidden}")
        for name, rate in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0.0 <= rate < 1.0:
                raise ConfigError(f"the adapter's {name} must be in [0, 1), got {rate}")
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("adapter init", init, INITS)
        self.activation, self.scale = activation, float(scale)
        self.down = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(hidden, width, bias=bias)
        self.drop = nn.Dropout(dropout)
        self.drop_path = float(drop_path)
        self.register_parameter("channel_scale", nn.Parameter(torch.ones(width)) if channel_scale else None)
        self.register_parameter("learned_scale", nn.Parameter(torch.ones(1)) if learned_scale else None)
        self.norm = InputNorm(width) if norm else None
        self._start(init)

    def _start(self, init: str) -> None:
        """Set the two layers to where they start; torch's Linear has drawn both uniform."""
        for layer in (self.down, self.up):
            biased: bool = layer.bias is not None
            if biased and not (init == "lora_bias" and layer is self.down):
                nn.init.zeros_(layer.bias)
            if init == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=STD, a=-2 * STD, b=2 * STD)
            elif init == "bert":
                nn.init.normal_(layer.weight, std=2 * STD)
            elif init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
                if biased:
                    nn.init.normal_(layer.bias, std=1e-6)
        if init in ("lora", "lora_bias"):
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Correction, same shape as x (..., C)."""
        read = x if self.norm is None else self.norm(x)
        y: Tensor = self.scale * self.up(self.drop(ACTIVATIONS[self.activation](self.down(read))))
        for factor in (self.channel_scale, self.learned_scale):
            y = y if factor is None else y * factor
        if self.drop_path and self.training:
            # one draw per sample, (B, 1, ..., 1), divided by its probability so that the expectation stays
            kept = torch.full((len(y), *[1] * (y.ndim - 1)), 1.0 - self.drop_path, device=y.device, dtype=y.dtype)
            y = y * kept.bernoulli() / (1.0 - self.drop_path)
        return y
