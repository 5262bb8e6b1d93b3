"""HydraLoRA (Tian et al., arXiv:2404.19245): one A, several B, and a router that mixes them for every token.

W x + s sum_i softmax(R x)_i B_i A x. The mixture depends on the token, so it cannot be merged: it stays beside its
projection, frozen, when the phase is over. Made for language models; on vision there are no published numbers.

Read in the authors' code (Clin0212/HydraLoRA at commit 5c08a78, HydraLoRA/peft/tuners/lora.py, Apache-2.0 as peft). Its
loss that balances the experts between kinds of tasks needs such kinds and is left out, as it is there by default.

Legend: I/O features, R rank, N experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.methods._structural import put_beside
from headwise.methods.base import Installed, Method, Plan, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import check_rank, kaiming_
from headwise.updates.sites import Site


class RoutedDelta(Delta):
    """s sum_i softmax(R x)_i B_i A x, A (R, I) and R (N, I) Kaiming uniform, B (N, O, R) zero.

    Parameters: R I + N (R O + I).
    """

    reads_base = False

    def __init__(
        self, site: Site, base: Tensor, rank: int, num_experts: int, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        """Experts of a projection with weight `base`, (O, I); ConfigError for a rank out of range."""
        super().__init__()
        check_rank(site, base, rank)
        self.constant, self.dropout = float(scale), float(dropout)
        num_rows, num_inputs = base.shape
        self.A = nn.Parameter(torch.empty(rank, num_inputs, device=base.device))
        self.B = nn.Parameter(torch.zeros(num_experts, num_rows, rank, device=base.device))
        self.router = nn.Parameter(torch.empty(num_experts, num_inputs, device=base.device))
        kaiming_(self.A)
        kaiming_(self.router)

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """Update of the output, (..., O), for x (..., I); `base` is not read."""
        shares = F.linear(x, self.router.to(x.dtype)).float().softmax(dim=-1)
        hidden = F.linear(F.dropout(x, self.dropout, self.training), self.A.to(x.dtype))
        # every expert's hidden side by side, (..., N R): then all B are one product
        mixed = (shares.to(hidden.dtype).unsqueeze(-1) * hidden.unsqueeze(-2)).flatten(-2)
        return self.constant * F.linear(mixed, self.B.transpose(0, 1).flatten(1).to(x.dtype))


@dataclass(frozen=True, kw_only=True)
class HydraLoRA(Method):
    """One shared A, N routed B per projection; stays in place. Starts at the identity.

    Parameters: r I + N (r O + I) per projection; on q and v of ViT-B/16 at r = 4 and N = 3: 350,208.

    Attributes:
        rank: r, in 1 .. min(O, I).
        num_experts: N.
        scale: s, constant (alpha / r of the authors' code).
        dropout: of the input, in [0, 1).
    """

    rank: Count
    num_experts: Count = 3
    scale: Factor = 1.0
    dropout: Rate = 0.0

    merges: ClassVar[bool] = False

    def count(self, net: Backbone) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * i + self.num_experts * (self.rank * o + i))

    def build(self, site: Site, base: Tensor) -> Delta:
        """One A, one router and N experts, shared by all heads."""
        return RoutedDelta(site, base, self.rank, self.num_experts, self.scale, self.dropout)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put the experts beside their projections; ConfigError if a projection still carries another update."""
        return put_beside(net, self.build_all(net.bases(self.targets)))
