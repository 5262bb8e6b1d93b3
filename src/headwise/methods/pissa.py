"""PiSSA (Meng et al., arXiv:2404.02948): LoRA that starts from the leading singular directions of the weight.

Legend: I/O features, R rank, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor
from headwise.updates.adapted import Delta, Factors
from headwise.updates.fused import at_least_float32
from headwise.updates.lowrank import check_rank
from headwise.updates.sites import QKV, Site


class PiSSADelta(Delta):
    """gate * s (B A - B0 A0), where s B0 A0 is the best rank-R approximation of the pretrained weight.

    The paper trains A and B beside the residual W - s B0 A0. Subtracting the frozen start instead leaves W untouched
    and is the same function; as ``[B, -B0] [A; A0]`` it is a low-rank update of rank 2 R. With W = U S V':
    A0 = (S/s)^(1/2) V' and B0 = U (S/s)^(1/2), the R largest. A and B start as copies, so the start is the identity.

    The stored file holds A, B, A0 and B0, twice the trained size, as the paper's own conversion to LoRA does: another
    machine's SVD would give a start that differs by rounding, and by more where singular values lie close together.
    """

    optional = ("active",)
    A0: Tensor
    B0: Tensor

    def __init__(self, site: Site, base: Tensor, rank: int, scale: float = 1.0) -> None:
        """Decompose `base`, (O, I); `scale` changes the step size of training, not the start.

        Raises:
            ConfigError: for a rank out of range, or a scale that is not positive.
        """
        super().__init__()
        check_rank(site, base, rank)
        if not scale > 0.0:
            raise ConfigError(f"scale must be positive for {site.key}, got {scale}")
        self.have_heads(site, base, columns=True)
        self.by_head = ("A", "A0") if site.head_axis == "input" else ("B", "B0")
        self.constant = float(scale)
        left, values, right = torch.linalg.svd(base.detach().to(at_least_float32(base)), full_matrices=False)
        # (R,): the singular values are shared out evenly, so that A and B start with equal norms
        root = (values[:rank] / self.constant).sqrt()
        self.register_buffer("A0", (root.unsqueeze(1) * right[:rank]).unsqueeze(0))
        self.register_buffer("B0", (left[:, :rank] * root).unsqueeze(0).contiguous())
        self.A = nn.Parameter(self.A0.clone())
        self.B = nn.Parameter(self.B0.clone())

    def factors(self) -> Factors:
        """``[A; A0]``, (1, 2 R, I), and the scaled ``[B, -B0]``, (1, O, 2 R), one of them gated."""
        both = torch.cat([self.A, self.A0], dim=1), torch.cat([self.B, -self.B0], dim=2)
        return Factors(*self.gated(*both, self.constant))

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, (O, I)."""
        down, up, *_ = self.factors()
        return (up[0] @ down[0]).to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class PiSSA(Method):
    """The leading singular directions of each projection, trained; no bias, head excluded.

    Each projection is decomposed on its own (an SVD of the fused qkv would share the rank out between q, k and v).
    Parameters: r * (I + O) per projection, 884,736 at r = 16 on q, k, v of ViT-B/16 (HS-LoRA prints 0.88 M).

    Licence: No licence file (GraphPKU/PiSSA), not read.
    Not for: Small files: A0 and B0 are stored too, twice the trained size.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant; 1 is alpha = r.
    """

    targets: Sequence[str] = QKV
    rank: Count
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        """r (I + O) per projection."""
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def build(self, site: Site, base: Tensor) -> Delta:
        """One SVD per projection."""
        return PiSSADelta(site, base, self.rank, self.scale)
