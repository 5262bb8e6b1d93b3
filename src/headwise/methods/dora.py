"""DoRA (Liu et al., arXiv:2402.09353): the row norms of the adapted weight are trained apart from its direction.

Legend: I/O features, R rank, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor
from headwise.updates.adapted import Delta, Factors
from headwise.updates.fused import at_least_float32
from headwise.updates.lowrank import check_rank, kaiming_
from headwise.updates.sites import QKV, Site


class DoRADelta(Delta):
    """W' = m (W + s B A) / ||W + s B A||, row by row; the update is gate * (W' - W).

    m is one trained magnitude per row, without weight decay; it starts as the row norms of W, and B as zero, so the
    start is the identity. The norm is a constant in the backward pass (paper, sec. 4.3), so the adapted projection is
    a low-rank update followed by a row scale, and no dense gradient is formed.

    A head that is off has its pretrained rows.
    """

    undecayed = ("magnitude",)
    by_head = ("B", "magnitude")
    active: Tensor
    base_square: Tensor

    def __init__(self, site: Site, base: Tensor, rank: int, scale: float = 1.0) -> None:
        """Factors and magnitudes of one projection with weight `base`, (O, I); ConfigError for a rank out of range."""
        super().__init__()
        check_rank(site, base, rank)
        self.have_heads(site, base)
        self.constant = float(scale)
        num_rows, num_inputs = base.shape
        square = base.detach().to(at_least_float32(base)).square().sum(dim=1)
        self.A = nn.Parameter(torch.empty(1, rank, num_inputs, device=base.device))
        self.B = nn.Parameter(torch.zeros(1, num_rows, rank, device=base.device))
        self.magnitude = nn.Parameter(square.sqrt())
        self.register_buffer("base_square", square, persistent=False)
        kaiming_(self.A)

    @property
    def is_structured(self) -> bool:
        """False while the gate is differentiated: factors times scale is of second order in it, `weight` linear."""
        return not self.active.requires_grad

    @torch.no_grad()
    def norm(self, base: Tensor) -> Tensor:
        """Row norms of W + s B A, (O,), without forming it.

        ``||W + s B A||^2 = ||W||^2 + 2 s <W A', B> + s^2 <B (A A'), B>`` row by row; the first term never changes.
        """
        with torch.autocast(base.device.type, enabled=False):
            down, up = self.A[0], self.B[0] * self.constant
            # (O, R): the products with A take O I R steps, where W + s B A would be formed and squared in full
            cross = 2.0 * (base.to(down.dtype) @ down.T) + up @ (down @ down.T)
            # rounding may take a row of zeros below zero, and the magnitude is divided by the norm
            return (self.base_square + (up * cross).sum(dim=1)).clamp_min(torch.finfo(down.dtype).tiny).sqrt()

    def factors(self) -> Factors:
        """A, (1, R, I), and the scaled, gated B, (1, O, R)."""
        return Factors(self.A, self.B * (self.gate().view(1, -1, 1) * self.constant))

    def scale(self, base: Tensor) -> Tensor:
        """m / ||W + s B A||, (O,); 1 in the rows of a head that is off."""
        return 1.0 + self.gate() * (self.magnitude / self.norm(base) - 1.0)

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, (O, I)."""
        down, up = self.A[0], self.B[0] * self.constant
        ratio = (self.magnitude / self.norm(base)).unsqueeze(1)
        return (self.gate().unsqueeze(1) * ((ratio - 1.0) * base + ratio * (up @ down))).to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class DoRA(Method):
    """Magnitude and direction of each projection trained apart; no bias, head excluded.

    Parameters: r * (I + O) + O per projection, 912,384 at r = 16 on q, k, v of ViT-B/16.

    Licence: NVIDIA Source Code License-NC (NVlabs/DoRA), not read; peft's is Apache-2.0.
    Not for: Small changes in bf16: row scales below 0.2 % move nothing there.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant (peft's alpha / r).
    """

    targets: Sequence[str] = QKV
    rank: Count
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        """r (I + O) + O per projection."""
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o) + o)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One magnitude per row, one low-rank direction per projection."""
        return DoRADelta(site, base, self.rank, self.scale)
