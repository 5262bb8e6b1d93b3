"""LoRA-XS (Balazy et al., arXiv:2405.17604): an (r, r) matrix between frozen singular directions of the weight.

W + s U_r R (S_r V_r'), with W = U S V' and the r largest singular values on the side of the inputs.

Legend: O/I features, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor
from headwise.updates.adapted import Delta, Factors
from headwise.updates.fused import at_least_float32
from headwise.updates.lowrank import check_rank
from headwise.updates.sites import Site

STD = 1e-5
"""Of R at the start."""


class LoRAXSDelta(Delta):
    """s B R A, B = U_r and A = S_r V_r' frozen, R (r, r) normal with std 1e-5. Parameters: r^2.

    The stored file holds A and B beside R: another machine's SVD may turn the signs of singular vectors round, and R
    means nothing without them.
    """

    A: Tensor
    B: Tensor

    def __init__(self, site: Site, base: Tensor, rank: int, scale: float = 1.0) -> None:
        """Decompose `base`, (O, I); ConfigError for a rank out of range."""
        super().__init__()
        check_rank(site, base, rank)
        self.constant = float(scale)
        left, values, right = torch.linalg.svd(base.detach().to(at_least_float32(base)), full_matrices=False)
        self.register_buffer("A", (values[:rank].unsqueeze(1) * right[:rank]).unsqueeze(0))
        self.register_buffer("B", left[:, :rank].unsqueeze(0).contiguous())
        self.R = nn.Parameter(STD * torch.randn(rank, rank, device=base.device))

    def factors(self) -> Factors:
        """A, (1, r, I), and the scaled B R, (1, O, r)."""
        return Factors(self.A, self.constant * (self.B @ self.R))

    def weight(self, base: Tensor) -> Tensor:
        down, up, *_ = self.factors()
        return (up[0] @ down[0]).to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class LoRAXS(Method):
    """r^2 parameters per projection, whatever its size; no bias, head excluded. Starts 1e-5 off the identity.

    Parameters on q and v of ViT-B/16: 24 r^2, 6,144 at r = 16.

    Licence: No licence file (MohammadrezaBanaei/LoRA-XS), not read.
    Not for: LoRA's rates: few parameters need larger ones. Tasks that need directions the weight lacks.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant (alpha / r of the paper's code).
    """

    rank: Count
    scale: Factor = 1.0

    identity_tolerance: ClassVar[float] = 1e-1

    def count(self, net: Backbone) -> int:
        """r^2 per projection."""
        return per_projection(net, self.targets, lambda *_: self.rank**2)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One SVD per projection."""
        return LoRAXSDelta(site, base, self.rank, self.scale)
