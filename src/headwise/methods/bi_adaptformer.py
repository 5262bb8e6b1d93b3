"""Bi-AdaptFormer (JieShibo/PETL-ViT, binary_adapter; arXiv:2307.16867): AdaptFormer with k bits per entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from headwise.methods._structural import beside_mlps, install_parts, per_block
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import CodeBits, Count, Factor, Rate
from headwise.updates.quantize import Quantizer
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.quantized import QuantizedBottleneck, QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class BiAdaptFormer(Method):
    """x <- x + DropPath(MLP(LN2 x)) + s Q(U) drop(relu(Q(D) x)), without biases; stays in place.

    Latent parameters: 2 C h per block, 589,824 at h = 32 on ViT-B/16. Stored: their codes and 8 bytes per matrix,
    73,920 bytes there at 1 bit. Q(U) cannot be zero, so the start is slightly off the identity.

    Licence: MIT (JieShibo/PETL-ViT).
    Not for: Training with less memory: latent factors are of full precision; only what is stored is small.

    Attributes:
        hidden: h, in 1 .. C.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
        bits: 1, 2, 4 or 8.
        codebook: kmedians (published) or kmeans.
        head_bits: 1, 2, 4 or 8 for a quantised classifier without bias; None for an ordinary one.
    """

    targets: Sequence[str] = ()
    hidden: Count = 32
    scale: Factor = 1.0
    dropout: Rate = 0.1
    bits: CodeBits = 1
    codebook: str = "kmedians"
    head_bits: CodeBits | None = None

    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 1e-1

    def __post_init__(self) -> None:
        super().__post_init__()
        for bits in (self.bits, self.head_bits):
            if bits is not None:
                Quantizer(bits, self.codebook)

    def count(self, net: Backbone) -> int:
        return per_block(net, lambda c: 2 * c * self.hidden)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap every block; ConfigError for a hidden width out of range, or blocks whose halves are unknown."""

        def make(width: int) -> nn.Module:
            part = Bottleneck(width, self.hidden, dropout=self.dropout, scale=self.scale)
            return QuantizedBottleneck(part, Quantizer(self.bits, self.codebook))

        parts = beside_mlps(net, "adaptformer", make)
        if self.head_bits is not None:
            net.set_head(QuantizedLinear(net.head, Quantizer(self.head_bits, self.codebook)))
        return install_parts(net, parts)
