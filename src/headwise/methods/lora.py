"""LoRA (Hu et al., arXiv:2106.09685): W + s B A, A (r, I) Kaiming uniform, B (O, r) zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Positive, Rate
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import QKV, Site


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """One shared low-rank update per projection; no bias, head excluded.

    Parameters: r * (I + O) per projection; ``fused`` shares one A between q, k and v of a block: r * (I + 3 O).

    Licence: MIT (microsoft/LoRA).
    Not for: Tasks that need an update of high rank. Nothing else rules it out: it is the baseline to beat.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant (peft's alpha / r).
        dropout: of the hidden A x, in [0, 1).
        fused: one A for q, k and v, as when a library adapts timm's fused qkv (NOAH, peft's default).
        lr_ratio: learning rate of B over that of A, above 0 (LoRA+); A and the head keep the phase's.
        freeze_a: hold A as it was drawn and train B alone (LoRA-FA): r O parameters per projection.
    """

    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0
    fused: bool = False
    lr_ratio: Positive = 1.0
    freeze_a: bool = False

    gateable: ClassVar[bool] = True
    later: ClassVar[Mapping[str, Any]] = {"lr_ratio": 1.0, "freeze_a": False}

    def count(self, net: Backbone) -> int:
        """r (I + O) per projection; `fused` r (I + 3 O) per block; with A frozen r O per projection."""
        if self.freeze_a:
            return per_projection(net, self.targets, lambda o, _, __: self.rank * o)
        alone = per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))
        shared = per_projection(net, ["k", "v"], lambda _, i, __: self.rank * i) if self.fused else 0
        return alone - shared

    def build(self, site: Site, base: Tensor) -> Delta:
        """One group of rows: the update is shared by all heads."""
        delta = LowRank(site, base, self.rank, groups=1, scale=self.scale, dropout=self.dropout)
        if self.lr_ratio != 1.0:
            delta.rates = {"B": self.lr_ratio}
        if self.freeze_a:
            delta.freeze_down()
        return delta

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """As `build`; with `fused`, k and v take q's A; ConfigError if that is asked for other targets than these."""
        deltas = super().build_all(bases)
        if self.fused:
            if set(self.targets) != set(QKV):
                raise ConfigError(f"fused LoRA adapts q, k and v together, got targets={list(self.targets)}")
            # a library that adapts timm's fused qkv has one A (r, d) and B (3 d, r): B's thirds are those of q, k and v
            first: dict[tuple[int, int], LowRank] = {}
            for site, delta in deltas.items():
                if isinstance(delta, LowRank):
                    delta.A = first.setdefault((site.stage, site.block), delta).A
        return deltas
