"""QuantizedLinear: a linear layer whose weight is used, and stored, in a few bits per entry; no bias.

Legend: I/O features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.updates.quantize import Coded, Quantizer
from headwise.wrappers.bottleneck import Bottleneck


class QuantizedLinear(nn.Linear):
    """y = Q(W) x, W the latent weight that trains (Bi-LoRA's adapters and 1-bit head)."""

    optional: tuple[str, ...] = ()

    def __init__(self, linear: nn.Linear, quantizer: Quantizer) -> None:
        """Take over the shape and the weight of `linear`; its bias is dropped.

        A constant weight would never learn: it is replaced by a normal one, std 0.001 cut at 0.002.
        """
        super().__init__(linear.in_features, linear.out_features, bias=False, device=linear.weight.device)
        self.coded = Coded(quantizer)
        with torch.no_grad():
            self.weight.copy_(linear.weight)
            # with a deviation of 0 every entry takes the same code, so the layer would stay constant
            if bool((self.weight == self.weight[0, 0]).all()):
                nn.init.trunc_normal_(self.weight, std=0.001, a=-0.002, b=0.002)

    def value(self) -> Tensor:
        """The weight as it is used, (O, I)."""
        return self.coded.value(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I)."""
        return F.linear(x, self.value())

    def pack(self) -> dict[str, Tensor]:
        """Codes of the weight, and its mean and deviation."""
        return self.coded.pack(self.weight)

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Use stored codes from now on, without quantising again; CheckpointError if they do not fit the shape."""
        self.weight.data.copy_(self.coded.unpack(tensors, self.weight))

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """An ordinary linear with the same output; its bias is zero."""
        linear = nn.Linear(self.in_features, self.out_features, device=self.weight.device)
        linear.weight.copy_(self.value())
        nn.init.zeros_(linear.bias)
        return linear.requires_grad_(self.weight.requires_grad).train(self.training)


class QuantizedBottleneck(nn.Module):
    """s Q(U) drop(act(Q(D) x)), stored as codes (Bi-AdaptFormer)."""

    optional: tuple[str, ...] = ()

    def __init__(self, bottleneck: Bottleneck, quantizer: Quantizer) -> None:
        super().__init__()
        bottleneck.down = QuantizedLinear(bottleneck.down, quantizer)
        bottleneck.up = QuantizedLinear(bottleneck.up, quantizer)
        self.part = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Correction, same shape as x (..., C)."""
        return self.part(x)

    def layers(self) -> dict[str, QuantizedLinear]:
        """The two layers in the order of the published files."""
        named = {"down": self.part.down, "up": self.part.up}
        return {name: layer for name, layer in named.items() if isinstance(layer, QuantizedLinear)}

    def pack(self) -> dict[str, Tensor]:
        """The codes of both layers, under ``down.*`` and ``up.*``."""
        return {f"{name}.{key}": t for name, layer in self.layers().items() for key, t in layer.pack().items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Use stored codes of both layers from now on."""
        for name, layer in self.layers().items():
            layer.unpack({key: tensors[f"{name}.{key}"] for key in ("codes", "stats")})
