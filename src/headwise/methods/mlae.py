"""MLAE (Wang et al., arXiv:2405.18897): r rank-one experts with learned coefficients, some left out in every step.

W + B diag(l) A. In training each l_j is 0 with probability p and l_j / (1 - p) otherwise, one draw for the whole batch
(the paper's stochastic masking; its fixed and mixed masks are left out). Merged with every expert.

Read in the authors' code (jie040109/MLAE at commit 33f852c, mlae.py; the repository states no licence). There the fused
qkv carries one set of experts; here q, k and v have their own. It leaves p, r and the coefficients' start to its
caller; those of conf/ are chosen here: 0.5, 8 and 1.

Legend: I/O features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.updates.adapted import Delta, Factors
from headwise.updates.lowrank import check_rank, kaiming_
from headwise.updates.sites import QKV, Site


class ExpertsDelta(Delta):
    """B diag(l) A, A (1, R, I) Kaiming uniform, B (1, O, R) zero, l (R,) at `scale`. Parameters: R (I + O + 1)."""

    reads_base = False

    def __init__(self, site: Site, base: Tensor, rank: int, scale: float, drop: float) -> None:
        """Experts of a projection with weight `base`, (O, I); ConfigError for a rank out of range."""
        super().__init__()
        check_rank(site, base, rank)
        self.drop = float(drop)
        self.A = nn.Parameter(torch.empty(1, rank, base.shape[1], device=base.device))
        self.B = nn.Parameter(torch.zeros(1, base.shape[0], rank, device=base.device))
        self.coefficients = nn.Parameter(torch.full((rank,), float(scale), device=base.device))
        kaiming_(self.A)

    def factors(self) -> Factors:
        """A and B diag(l), in training with a new mask."""
        return Factors(self.A, self.B * F.dropout(self.coefficients, self.drop, self.training))

    def weight(self, base: Tensor) -> Tensor:
        """Dense update with every expert, (O, I)."""
        return ((self.B[0] * self.coefficients) @ self.A[0]).to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class MLAE(Method):
    """Masked rank-one experts in every target projection; merges. Starts at the identity.

    Parameters: r (I + O + 1) per projection; on q, k, v of ViT-B/16 at r = 8: 442,656.

    Attributes:
        rank: r, the number of experts, in 1 .. min(O, I).
        scale: start of every coefficient.
        drop: p, in [0, 1).
    """

    targets: Sequence[str] = QKV
    rank: Count
    scale: Factor = 1.0
    drop: Rate = 0.5

    def count(self, net: Backbone) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o + 1))

    def build(self, site: Site, base: Tensor) -> Delta:
        """One set of experts, shared by all heads."""
        return ExpertsDelta(site, base, self.rank, self.scale, self.drop)
