"""Control for per-head updates: the heads' factors come from one small generator, in the spirit of HoRA.

Head h has an embedding e_h (m,) and the code z_h = gelu(E e_h) (n,). Its factors mix n shared matrices: A_h = sum_j
z_hj U_j and B_h = sum_j z_hj V_j, and its rows get s B_h A_h. So heads share directions, where HS-LoRA's are private.

HoRA (Diep et al., arXiv:2510.04295) generates low-rank matrices of all heads by joint hypernetworks; no code of it was
at hand, so this is the simplest such generator and not a reproduction. It is linear behind its one hidden layer.

Legend: H heads, I/O features, R rank, M embedding, N shared matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Method, check_heads
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor
from headwise.updates.adapted import Delta, Factors
from headwise.updates.lowrank import check_rank, kaiming_
from headwise.updates.sites import Site


class GeneratedDelta(Delta):
    """s B_h A_h for the rows of each head h, both mixed of shared matrices; U Kaiming uniform, V zero.

    e is standard normal, E Kaiming uniform. Parameters: N R (I + O / H) + M (H + N).
    """

    reads_base = False

    def __init__(
        self, site: Site, base: Tensor, rank: int, num_shared: int, embedding: int, scale: float = 1.0
    ) -> None:
        """Generator of a projection with weight `base`, (O, I); ConfigError for a rank out of range."""
        super().__init__()
        check_rank(site, base, rank, site.num_heads)
        self.have_heads(site, base)
        self.constant = float(scale)
        heads, device = site.num_heads, base.device
        self.embeddings = nn.Parameter(torch.randn(heads, embedding, device=device))
        self.encoder = nn.Parameter(torch.empty(num_shared, embedding, device=device))
        self.U = nn.Parameter(torch.empty(num_shared, rank, base.shape[1], device=device))
        self.V = nn.Parameter(torch.zeros(num_shared, base.shape[0] // heads, rank, device=device))
        kaiming_(self.encoder)
        kaiming_(self.U)

    def factors(self) -> Factors:
        """A, (H, R, I), and the scaled, gated B, (H, O // H, R)."""
        codes = F.gelu(F.linear(self.embeddings, self.encoder))
        # a product that autocast knows: it casts the codes and would leave the shared matrices to tensordot as they are
        down, up = ((codes @ shared.flatten(1)).unflatten(1, shared.shape[1:]) for shared in (self.U, self.V))
        return Factors(*self.gated(down, up, self.constant))

    def weight(self, base: Tensor) -> Tensor:
        down, up, *_ = self.factors()
        return torch.bmm(up, down).flatten(0, 1).to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class SharedHeads(Method):
    """Per-head updates whose factors are mixed of shared matrices; merges. Starts at the identity.

    With as many shared matrices as heads it could be `HeadLoRA`; with few its heads move alike.
    Parameters: n r (I + O / H) + m (H + n) per projection; on q and v of ViT-B/16 at r = 4, n = 4, m = 8: 322,560.

    Attributes:
        rank: r per head, in 1 .. head_dim.
        num_shared: n.
        embedding: m.
        scale: s, constant.
    """

    rank: Count
    num_shared: Count = 4
    embedding: Count = 8
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        total = 0
        for site, base in net.bases(self.targets).items():
            shared = self.num_shared * self.rank * (base.shape[1] + base.shape[0] // site.num_heads)
            total += shared + self.embedding * (site.num_heads + self.num_shared)
        return total

    def build(self, site: Site, base: Tensor) -> Delta:
        """One generator for the heads of a projection; ConfigError for projections other than q, k and v."""
        check_heads(self, site)
        if site.head_axis == "input":
            raise ConfigError(
                f"method {self.label!r} shares rows of heads, and those of {site.key} are columns; allowed: q, k, v"
            )
        return GeneratedDelta(site, base, self.rank, self.num_shared, self.embedding, self.scale)
