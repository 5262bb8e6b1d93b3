"""Bi-LoRA (JieShibo/PETL-ViT, binary_adapter; arXiv:2307.16867): LoRA whose factors have k bits per entry.

With a gate this is Heart-LoRA: conf/method/heart_lora.yaml.

Legend: O, I features, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.methods.base import Installed, Method, Plan, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Bits, CodeBits, Count, Factor, Rate
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.quantize import Quantizer
from headwise.updates.sites import Site
from headwise.wrappers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class BiLoRA(Method):
    """y = W x + s Q(B) drop(Q(A) x), Q the k-bit quantiser with one mean and deviation per matrix.

    Latent parameters: r * (I + O) per projection, 1,179,648 at r = 32 on q and v of ViT-B/16. Stored: their codes and
    8 bytes per matrix, 147,840 bytes there at 1 bit. Q(B) cannot be zero, so the start is slightly off the identity.

    Licence: MIT (JieShibo/PETL-ViT).
    Not for: Training with less memory: latent factors are of full precision; only what is stored is small.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant.
        dropout: of the hidden, in [0, 1); published 0.1.
        bits: 1, 2, 4 or 8; 32 is no quantiser, which is plain LoRA.
        codebook: kmedians (published) or kmeans.
        stats: rows of B that its mean and deviation are taken over, ``all`` (published) or ``active_rows``.
        head_bits: 1, 2, 4 or 8 for a quantised classifier without bias ("bihead"); None for an ordinary one.
    """

    rank: Count = 32
    scale: Factor = 1.0
    dropout: Rate = 0.1
    bits: Bits = 1
    codebook: str = "kmedians"
    stats: str = "all"
    head_bits: CodeBits | None = None

    gateable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantizer()
        if self.head_bits is not None:
            Quantizer(self.head_bits, self.codebook)

    @property
    def identity_tolerance(self) -> float:  # type: ignore[override]
        """Wide where something is quantised, which starts off zero."""
        return Method.identity_tolerance if self.bits == 32 and self.head_bits is None else 1e-1

    def quantizer(self) -> Quantizer | None:
        """The quantiser of both factors; None at 32 bits."""
        if self.bits == 32:
            return None
        return Quantizer(self.bits, self.codebook, self.stats)

    def count(self, net: Backbone) -> int:
        """r (I + O) latent ones per projection, whatever they are stored in."""
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """As any method of deltas; with `head_bits`, over a quantised classifier that becomes plain when merged."""
        if self.head_bits is not None:
            # the head first: what trains is settled when the deltas are in place, the head's latent weight included
            net.set_head(QuantizedLinear(net.head, Quantizer(self.head_bits, self.codebook)))
        return super().install(net, plan)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One group of rows: the update is shared by all heads."""
        return LowRank(site, base, self.rank, scale=self.scale, dropout=self.dropout, quantizer=self.quantizer())
